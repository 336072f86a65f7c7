// The half spectrum of one channel of a tile, and back: columns, transpose, rows. See Geometry in kernel.h.
#pragma once

#include "fft.h"
#include "planes.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
struct TransformScratch {
  T* staging;  // [height, staging_stride]
  T* rows;     // [(height + 1) / 2, 2, row_stride]
  Vec<T>* fft[4];
};

// f(0) .. f(count - 1), unrolled where the count N is known at compile time (N > 0).
template <int N, typename F>
AFFNET_INLINE void loop(int count, F&& f) {
  if constexpr (N > 0) {
    unroll<N>(f);
  } else {
    for (int i = 0; i < count; ++i) f(i);
  }
}

// A complex signal of N vectors in registers and on the stack; N = 0: of any length, in scratch memory.
template <int N, typename T>
struct Workspace {
  Vec<T> re[N], im[N];
  AFFNET_INLINE explicit Workspace(const TransformScratch<T>&) {}
  AFFNET_INLINE Signal<T> signal() { return {re, im}; }
  AFFNET_INLINE Signal<T> transform(const FftPlan<T>&) {
    dft<N>(re, im);
    return {re, im};
  }
  AFFNET_INLINE Signal<T> inverse(const FftPlan<T>&) {
    dft<N>(im, re);
    return {re, im};
  }
};

template <typename T>
struct Workspace<0, T> {
  Vec<T>* const* fft_buffers;
  explicit Workspace(const TransformScratch<T>& scratch) : fft_buffers(scratch.fft) {}
  Signal<T> signal() { return {fft_buffers[0], fft_buffers[1]}; }
  Signal<T> transform(const FftPlan<T>& plan) { return fft(plan, signal(), {fft_buffers[2], fft_buffers[3]}); }
  Signal<T> inverse(const FftPlan<T>& plan) {
    const Signal<T> z = fft(plan, {fft_buffers[1], fft_buffers[0]}, {fft_buffers[2], fft_buffers[3]});
    return {z.im, z.re};
  }
};

// Where block `i` of `lanes` starts among `count` lanes: the last block is moved back to end with them, and repeats
// some of the one before; fewer lanes than a block start at 0.
AFFNET_INLINE constexpr int block_start(int i, int count, int lanes) {
  const int start = i * lanes;
  return start + lanes <= count || count <= lanes ? start : count - lanes;
}
AFFNET_INLINE constexpr int blocks_of(int count, int lanes) { return (count + lanes - 1) / lanes; }

// Columns of x to rows of the spectrum, times 2 but for the real rows, which share a complex one.
template <int N, Access kAccess, typename T>
__attribute__((noinline)) void columns_to_rows(const Geometry<T>& g, const Columns<const T>& x,
                                               const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int height = N ? N : g.height, half = (height - 1) / 2;
  const bool even = height % 2 == 0;
  const ptrdiff_t part = g.row_stride;
  for (int b = 0; b < blocks_of(g.pairs, V::kLanes); ++b) {
    const int j = block_start(b, g.pairs, V::kLanes);
    Workspace<N, T> work(scratch);
    Signal<T> z = work.signal();
    const ptrdiff_t offset = kAccess == Access::kWhole ? j : b * x.block_step;
    loop<N>(height, [&](auto h) AFFNET_LAMBDA {
      z.re[h] = load_columns<kAccess>(x, x.first + h * x.stride + offset);
      z.im[h] = load_columns<kAccess>(x, x.second + h * x.stride + offset);
    });
    z = work.transform(g.column_fft);
    // The first of each pair is stored first: lanes of it beyond the last pair lie where the second comes to lie.
    T* const first = scratch.rows + j;
    T* const second = first + g.pairs;
    z.re[0].store(first), z.im[0].store(second);
    if (even) z.re[height / 2].store(first + part), z.im[height / 2].store(second + part);
    loop<N ? (N - 1) / 2 : 0>(half, [&](auto i) AFFNET_LAMBDA {
      const int k = i + 1;
      const V re = z.re[k], im = z.im[k], mirror_re = z.re[height - k], mirror_im = z.im[height - k];
      (re + mirror_re).store(first + 2 * k * part);
      (im - mirror_im).store(first + (2 * k + 1) * part);
      (im + mirror_im).store(second + 2 * k * part);
      (mirror_re - re).store(second + (2 * k + 1) * part);
    });
  }
}

// The inverse of columns_to_rows, without its factor. x + scale * (it) goes to y; without x, the addend, to staging
// memory.
template <int N, Access kAccess, typename T>
__attribute__((noinline)) void rows_to_columns(const Geometry<T>& g, const Columns<T>& y, const Columns<const T>& x,
                                               T scale, Vec<T>& finite, const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int height = N ? N : g.height, half = (height - 1) / 2;
  const bool even = height % 2 == 0;
  const ptrdiff_t part = g.row_stride;
  for (int b = 0; b < blocks_of(g.pairs, V::kLanes); ++b) {
    const int j = block_start(b, g.pairs, V::kLanes);
    const T* const first = scratch.rows + j;
    const T* const second = first + g.pairs;
    Workspace<N, T> work(scratch);
    Signal<T> z = work.signal();
    z.re[0] = V::load(first), z.im[0] = V::load(second);
    if (even) z.re[height / 2] = V::load(first + part), z.im[height / 2] = V::load(second + part);
    loop<N ? (N - 1) / 2 : 0>(half, [&](auto i) AFFNET_LAMBDA {
      const int k = i + 1;
      const V a_re = V::load(first + 2 * k * part), a_im = V::load(first + (2 * k + 1) * part);
      const V b_re = V::load(second + 2 * k * part), b_im = V::load(second + (2 * k + 1) * part);
      z.re[k] = a_re - b_im, z.im[k] = a_im + b_re;
      z.re[height - k] = a_re + b_im, z.im[height - k] = b_re - a_im;
    });
    z = work.inverse(g.column_fft);
    const ptrdiff_t offset = kAccess == Access::kWhole ? j : b * y.block_step;
    if (x.first) {
      loop<N>(height, [&](auto h) AFFNET_LAMBDA {
        const ptrdiff_t at = h * y.stride + offset;
        const V re = load_columns<kAccess>(x, x.first + at) + z.re[h] * scale;
        const V im = load_columns<kAccess>(x, x.second + at) + z.im[h] * scale;
        finite += re * T(0), finite += im * T(0);
        store_columns<kAccess>(y, re, y.first + at);
        store_columns<kAccess>(y, im, y.second + at);
      });
    } else {
      loop<N>(height, [&](auto h) AFFNET_LAMBDA {
        (z.re[h] * scale).store(y.first + h * y.stride + offset);
        (z.im[h] * scale).store(y.second + h * y.stride + offset);
      });
    }
  }
}

// `lanes` rows from `row` on, transposed: z[w] gets element w of each.
template <int N, typename T>
AFFNET_INLINE void gather_rows(Vec<T>* z, const T* rows, const int* offsets, int width) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  loop<N ? blocks_of(N, L) : 0>(blocks_of(width, L), [&](auto b) AFFNET_LAMBDA {
    const int w = block_start(b, width, L);
    V block[L];
    unroll<L>([&](auto l) AFFNET_LAMBDA { block[l] = V::load(rows + offsets[l] + w); });
    transpose(block);
    unroll<L>([&](auto l) AFFNET_LAMBDA {
      if (w + l < width) z[w + l] = block[l];
    });
  });
}

template <int N, typename T>
AFFNET_INLINE void scatter_rows(const Vec<T>* z, T* rows, const int* offsets, int count, int width) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  loop<N ? blocks_of(N, L) : 0>(blocks_of(width, L), [&](auto b) AFFNET_LAMBDA {
    const int w = block_start(b, width, L);
    V block[L];
    unroll<L>([&](auto l) AFFNET_LAMBDA { block[l] = w + l < width ? z[w + l] : V(T(0)); });
    transpose(block);
    unroll<L>([&](auto l) AFFNET_LAMBDA {
      if (l < count) store_first(block[l], rows + offsets[l] + w, width < L ? width : L);
    });
  });
}

// Rows to slots. `weighted`: half the hermitian weight is multiplied in, 1 for inner columns, 1/2 for DC and Nyquist.
template <int N, typename T>
__attribute__((noinline)) void rows_to_slots(const Geometry<T>& g, T* slots, bool weighted,
                                             const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = N ? N : g.width;
  const V edge(weighted ? T(0.5) : T(1));
  T* const slots_im = slots + g.slot_stride;
  for (int b = 0; b < blocks_of(g.rows, V::kLanes); ++b) {
    const int row = block_start(b, g.rows, V::kLanes);
    const Mask<T> shared = V::load(g.row_shared + row) > V(T(0));
    Workspace<N, T> work(scratch);
    Signal<T> z = work.signal();
    gather_rows<N>(z.re, scratch.rows, g.row_re + row, width);
    gather_rows<N>(z.im, scratch.rows, g.row_im + row, width);
    z = work.transform(g.row_fft);
    // In the order of memory: lanes beyond the last row are overwritten by the next store.
    loop<N ? N / 2 + 1 : 0>(width / 2 + 1, [&](auto kw) AFFNET_LAMBDA {
      const int mirror = kw == 0 ? 0 : width - kw;
      const V p_re = z.re[kw], p_im = z.im[kw], q_re = z.re[mirror], q_im = z.im[mirror];
      V a_re = select(shared, p_re + q_re, p_re), a_im = select(shared, p_im - q_im, p_im);
      V b_re = select(shared, p_im + q_im, q_re), b_im = select(shared, q_re - p_re, -q_im);
      if (hermitian_weight(kw, width) == 1) {
        a_re = a_re * edge, a_im = a_im * edge, b_re = b_re * edge, b_im = b_im * edge;
      }
      const ptrdiff_t slot = ptrdiff_t{2} * kw * g.rows + row;
      a_re.store(slots + slot), b_re.store(slots + slot + g.rows);
      a_im.store(slots_im + slot), b_im.store(slots_im + slot + g.rows);
    });
  }
  V(T(0)).store(slots + g.slots);
  V(T(0)).store(slots_im + g.slots);
}

// Slots to rows. DC and Nyquist columns: the mean of Y(kh) and conj Y(-kh), whose inverse along the height is the real
// part of that of Y. `weighted` slots already hold half of each.
template <int N, typename T>
__attribute__((noinline)) void slots_to_rows(const Geometry<T>& g, const T* slots, bool weighted,
                                             const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = N ? N : g.width;
  const V edge(weighted ? T(1) : T(0.5)), edge_shared(weighted ? T(2) : T(1));
  const T* const slots_im = slots + g.slot_stride;
  for (int b = 0; b < blocks_of(g.rows, V::kLanes); ++b) {
    const int row = block_start(b, g.rows, V::kLanes);
    const Mask<T> shared = V::load(g.row_shared + row) > V(T(0));
    Workspace<N, T> work(scratch);
    Signal<T> z = work.signal();
    loop<N ? N / 2 + 1 : 0>(width / 2 + 1, [&](auto kw) AFFNET_LAMBDA {
      const ptrdiff_t slot = ptrdiff_t{2} * kw * g.rows + row;
      const V a_re = V::load(slots + slot), b_re = V::load(slots + slot + g.rows);
      const V a_im = V::load(slots_im + slot), b_im = V::load(slots_im + slot + g.rows);
      if (hermitian_weight(kw, width) == 1) {
        z.re[kw] = select(shared, a_re * edge_shared, (a_re + b_re) * edge);
        z.im[kw] = select(shared, b_re * edge_shared, (a_im - b_im) * edge);
      } else {
        z.re[kw] = select(shared, a_re - b_im, a_re);
        z.im[kw] = select(shared, a_im + b_re, a_im);
        z.re[width - kw] = select(shared, a_re + b_im, b_re);
        z.im[width - kw] = select(shared, b_re - a_im, -b_im);
      }
    });
    z = work.inverse(g.row_fft);
    const int count = g.rows - row < V::kLanes ? g.rows - row : V::kLanes;
    scatter_rows<N>(z.re, scratch.rows, g.row_re + row, count, width);
    scatter_rows<N>(z.im, scratch.rows, g.row_im + row, count, width);
  }
}

// Calls f with the length as a compile-time constant where there is straight-line code for it, else with 0: the lengths
// of the networks' maps at 224, 256 and 320 pixels.
template <typename T, typename F>
AFFNET_INLINE void with_length(int length, F&& f) {
  if constexpr (sizeof(T) == 4 && kVecBytes >= 32) {
    switch (length) {
      case 7:
        return f(std::integral_constant<int, 7>{});
      case 8:
        return f(std::integral_constant<int, 8>{});
      case 14:
        return f(std::integral_constant<int, 14>{});
      case 16:
        return f(std::integral_constant<int, 16>{});
      case 32:
        return f(std::integral_constant<int, 32>{});
    }
  }
  f(std::integral_constant<int, 0>{});
}

// Calls f with the access as a compile-time constant.
template <typename F>
AFFNET_INLINE void with_access(Access access, F&& f) {
  switch (access) {
    case Access::kWhole:
      return f(std::integral_constant<Access, Access::kWhole>{});
    case Access::kFirst:
      return f(std::integral_constant<Access, Access::kFirst>{});
    case Access::kHalves:
      if constexpr (kHasHalves) return f(std::integral_constant<Access, Access::kHalves>{});
  }
}

// The slots of one channel: [2, slot_stride] of which `slots` are filled and kLanes zeros follow.
template <typename T>
void to_spectrum(const Geometry<T>& g, const Planes<const void>& x, T* slots, bool weighted,
                 const TransformScratch<T>& scratch) {
  Columns<const T> columns = direct_columns<const T>(g, x);
  if (!columns.first) columns = staged(g, x, scratch.staging);
  with_length<T>(g.height, [&](auto n) AFFNET_LAMBDA {
    with_access(columns.access, [&](auto access) AFFNET_LAMBDA { columns_to_rows<n, access()>(g, columns, scratch); });
  });
  if (g.height % 2 != 0 && g.images == 1) {
    for (int i = 0; i < g.row_stride; ++i) scratch.rows[g.row_stride + i] = 0;  // what the lone row 0 is paired with
  }
  with_length<T>(g.width, [&](auto n) AFFNET_LAMBDA { rows_to_slots<n>(g, slots, weighted, scratch); });
}

// out = x + scale * inverse(slots); a NaN in a lane of `finite` afterwards: something in out is not finite.
template <typename T>
void from_spectrum(const Geometry<T>& g, const T* slots, const Planes<const void>& x, const Planes<void>& out, T scale,
                   bool weighted, Vec<T>& finite, const TransformScratch<T>& scratch) {
  with_length<T>(g.width, [&](auto n) AFFNET_LAMBDA { slots_to_rows<n>(g, slots, weighted, scratch); });
  const Columns<const T> addend = direct_columns<const T>(g, x);
  const Columns<T> y = addend.first ? direct_columns<T>(g, out) : staged_columns(g, scratch.staging);
  with_length<T>(g.height, [&](auto n) AFFNET_LAMBDA {
    with_access(y.access,
                [&](auto access) AFFNET_LAMBDA { rows_to_columns<n, access()>(g, y, addend, scale, finite, scratch); });
  });
  if (!addend.first) store_staged(g, scratch.staging, x, out, finite);
}

}  // namespace affnet::AFFNET_CAPABILITY
