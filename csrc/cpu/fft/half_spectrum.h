// The half spectrum of one channel of a tile, and back: columns, transpose, rows. See Geometry in kernel.h.
#pragma once

#include "fft/vector_transforms.h"
#include "hermitian_weight.h"
#include "planes.h"

namespace affnet::AFFNET_CAPABILITY {

// Columns of x to rows of the spectrum, times 2 but for the real rows, which share a complex one.
template <int N, Access kAccess, typename T>
__attribute__((noinline)) void columns_to_rows(const Geometry<T>& g, const Columns<const T>& x,
                                               const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int height = N ? N : g.height;
  const ptrdiff_t part = g.row_stride;
  for (int b = 0; b < blocks_of(g.pairs, V::kLanes); ++b) {
    const int j = block_start(b, g.pairs, V::kLanes);
    const ptrdiff_t offset = kAccess == Access::kWhole ? j : b * x.block_step;
    // The first of each pair of columns is stored first: lanes of it beyond the last pair lie where the second comes to
    // lie.
    T* const first = scratch.rows + j;
    T* const second = first + g.pairs;
    Workspace<N, T>(scratch).transform(
        g.column_fft,
        [&](auto h, V& re, V& im) AFFNET_LAMBDA {
          re = load_columns<kAccess>(x, x.first + h * x.stride + offset);
          im = load_columns<kAccess>(x, x.second + h * x.stride + offset);
        },
        [&](auto k, V re, V im, V mirror_re, V mirror_im) AFFNET_LAMBDA {
          if (hermitian_weight(k, height) == 1) {
            const ptrdiff_t row = k == 0 ? 0 : part;
            re.store(first + row), im.store(second + row);
          } else {
            const ptrdiff_t row = 2 * k * part;
            (re + mirror_re).store(first + row);
            (im - mirror_im).store(first + row + part);
            (im + mirror_im).store(second + row);
            (mirror_re - re).store(second + row + part);
          }
        });
  }
}

// The inverse of columns_to_rows, without its factor. x + scale * (it) goes to y; without x, the addend, to staging
// memory.
template <int N, Access kAccess, typename T>
__attribute__((noinline)) void rows_to_columns(const Geometry<T>& g, const Columns<T>& y, const Columns<const T>& x,
                                               T scale, Vec<T>& finite, const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int height = N ? N : g.height;
  const ptrdiff_t part = g.row_stride;
  for (int b = 0; b < blocks_of(g.pairs, V::kLanes); ++b) {
    const int j = block_start(b, g.pairs, V::kLanes);
    const T* const first = scratch.rows + j;
    const T* const second = first + g.pairs;
    const ptrdiff_t offset = kAccess == Access::kWhole ? j : b * y.block_step;
    const auto rows = [&](auto k, V& re, V& im, V& mirror_re, V& mirror_im) AFFNET_LAMBDA {
      if (hermitian_weight(k, height) == 1) {
        const ptrdiff_t row = k == 0 ? 0 : part;
        re = V::load(first + row), im = V::load(second + row);
      } else {
        const ptrdiff_t row = 2 * k * part;
        const V a_re = V::load(first + row), a_im = V::load(first + row + part);
        const V b_re = V::load(second + row), b_im = V::load(second + row + part);
        re = a_re - b_im, im = a_im + b_re;
        mirror_re = a_re + b_im, mirror_im = b_re - a_im;
      }
    };
    if (x.first) {
      unroll<N>([&](auto h) AFFNET_LAMBDA {  // the last stores would wait for memory one by one
        __builtin_prefetch(y.first + h * y.stride + offset, 1, 3);
        __builtin_prefetch(y.second + h * y.stride + offset, 1, 3);
      });
      Workspace<N, T>(scratch).inverse(g.column_fft, rows, [&](auto h, V re, V im) AFFNET_LAMBDA {
        const ptrdiff_t at = h * y.stride + offset;
        re = load_columns<kAccess>(x, x.first + at) + re * scale;
        im = load_columns<kAccess>(x, x.second + at) + im * scale;
        finite += re * T(0), finite += im * T(0);
        store_columns<kAccess>(y, re, y.first + at);
        store_columns<kAccess>(y, im, y.second + at);
      });
    } else {
      Workspace<N, T>(scratch).inverse(g.column_fft, rows, [&](auto h, V re, V im) AFFNET_LAMBDA {
        (re * scale).store(y.first + h * y.stride + offset);
        (im * scale).store(y.second + h * y.stride + offset);
      });
    }
  }
}

// Rows to slots. `weighted`: half the hermitian weight is multiplied in, 1 for inner columns, 1/2 for DC and Nyquist.
template <int N, typename T>
__attribute__((noinline)) void rows_to_slots(const Geometry<T>& g, T* slots, bool weighted,
                                             const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = N ? N : g.width;
  const V edge(weighted ? T(0.5) : T(1));
  const ptrdiff_t rows = g.rows, part = g.slot_stride;
  const int count = g.rows < V::kLanes ? g.rows : V::kLanes;
  for (int b = 0; b < blocks_of(g.rows, V::kLanes); ++b) {
    const int row = block_start(b, g.rows, V::kLanes);
    const Mask<T> shared = V::load(g.row_shared + row) > V(T(0));
    Buffer<N, T> z(scratch);
    gather_rows<N>(z.re, scratch.rows, g.row_re + row, width);
    gather_rows<N>(z.im, scratch.rows, g.row_im + row, width);
    Workspace<N, T>(scratch).transform(
        g.row_fft, [&](auto w, V& re, V& im) AFFNET_LAMBDA { re = z.re[w], im = z.im[w]; },
        [&](auto kw, V p_re, V p_im, V q_re, V q_im) AFFNET_LAMBDA {
          V a_re = select(shared, p_re + q_re, p_re), a_im = select(shared, p_im - q_im, p_im);
          V b_re = select(shared, p_im + q_im, q_re), b_im = select(shared, q_re - p_re, -q_im);
          if (hermitian_weight(kw, width) == 1) {
            a_re = a_re * edge, a_im = a_im * edge, b_re = b_re * edge, b_im = b_im * edge;
          }
          T* const a = slots + kw * 2 * rows + row;
          T* const b = a + rows;
          store_first(a_re, a, count), store_first(b_re, b, count);
          store_first(a_im, a + part, count), store_first(b_im, b + part, count);
        });
  }
  V(T(0)).store(slots + g.slots);
  V(T(0)).store(slots + g.slots + part);
}

// Slots to rows. DC and Nyquist columns: the mean of Y(kh) and conj Y(-kh), whose inverse along the height is the real
// part of that of Y. `weighted` slots already hold half of each.
template <int N, typename T>
__attribute__((noinline)) void slots_to_rows(const Geometry<T>& g, const T* slots, bool weighted,
                                             const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = N ? N : g.width;
  const V edge(weighted ? T(1) : T(0.5)), edge_shared(weighted ? T(2) : T(1));
  const ptrdiff_t rows = g.rows, part = g.slot_stride;
  const int count = g.rows < V::kLanes ? g.rows : V::kLanes;
  for (int b = 0; b < blocks_of(g.rows, V::kLanes); ++b) {
    const int row = block_start(b, g.rows, V::kLanes);
    const Mask<T> shared = V::load(g.row_shared + row) > V(T(0));
    Buffer<N, T> z(scratch);
    Workspace<N, T>(scratch).inverse(
        g.row_fft,
        [&](auto kw, V& re, V& im, V& mirror_re, V& mirror_im) AFFNET_LAMBDA {
          const T* const a = slots + kw * 2 * rows + row;
          const T* const b = a + rows;
          const V a_re = V::load(a), b_re = V::load(b), a_im = V::load(a + part), b_im = V::load(b + part);
          if (hermitian_weight(kw, width) == 1) {
            re = select(shared, a_re * edge_shared, (a_re + b_re) * edge);
            im = select(shared, b_re * edge_shared, (a_im - b_im) * edge);
          } else {
            re = select(shared, a_re - b_im, a_re), im = select(shared, a_im + b_re, a_im);
            mirror_re = select(shared, a_re + b_im, b_re), mirror_im = select(shared, b_re - a_im, -b_im);
          }
        },
        [&](auto w, V re, V im) AFFNET_LAMBDA { z.re[w] = re, z.im[w] = im; });
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
      case 10:
        return f(std::integral_constant<int, 10>{});
      case 14:
        return f(std::integral_constant<int, 14>{});
      case 16:
        return f(std::integral_constant<int, 16>{});
      case 20:
        return f(std::integral_constant<int, 20>{});
      case 28:
        return f(std::integral_constant<int, 28>{});
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
