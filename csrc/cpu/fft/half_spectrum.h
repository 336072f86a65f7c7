// Planes to slots of the half spectrum and back: transforms of columns, transpose, transforms of rows. See Geometry.
#pragma once

#include "fft/energy.h"
#include "fft/thin_maps.h"
#include "fft/vector_transforms.h"
#include "hermitian_weight.h"
#include "planes.h"

namespace affnet::AFFNET_CAPABILITY {

// Transforms the columns of x to rows of the spectrum. The complex rows come out multiplied by 2, the real ones not.
template <int N, Access kAccess, bool kKeepEnergy, typename T>
__attribute__((noinline)) void columns_to_rows(const Geometry<T>& g, const Columns<const T>& x,
                                               const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int height = N ? N : g.height;
  const ptrdiff_t part = g.row_stride;
  for (int v = 0; v < vectors_of(g.pairs, V::kLanes); ++v) {
    const int j = vector_start(v, g.pairs, V::kLanes);
    const ptrdiff_t offset = kAccess == Access::kWhole ? j : v * x.vector_step;
    // The first column of each pair must be stored before the second: lanes of the first beyond the last pair land
    // where those of the second belong.
    T* const first = scratch.rows + j;
    T* const second = first + g.pairs;
    V first_energy(T(0)), second_energy(T(0));
    Workspace<N, T>(scratch).transform(
        g.column_fft,
        [&](auto h, V& re, V& im) AFFNET_LAMBDA {
          re = load_columns<kAccess>(x, x.first + h * x.stride + offset);
          im = load_columns<kAccess>(x, x.second + h * x.stride + offset);
          if constexpr (kKeepEnergy) first_energy += re * re, second_energy += im * im;
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
    if constexpr (kKeepEnergy) add_energy(scratch, v, first_energy, second_energy);
  }
}

// The inverse of columns_to_rows without its factor: y = x + scale * inverse. Without x, as when y is staging memory,
// y = inverse.
template <int N, Access kAccess, bool kKeepEnergy, typename T>
__attribute__((noinline)) void rows_to_columns(const Geometry<T>& g, const Columns<T>& y, const Columns<const T>& x,
                                               T scale, Vec<T>& finite, const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int height = N ? N : g.height;
  const ptrdiff_t part = g.row_stride;
  for (int v = 0; v < vectors_of(g.pairs, V::kLanes); ++v) {
    const int j = vector_start(v, g.pairs, V::kLanes);
    const T* const first = scratch.rows + j;
    const T* const second = first + g.pairs;
    const ptrdiff_t offset = kAccess == Access::kWhole ? j : v * y.vector_step;
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
    V first_energy(T(0)), second_energy(T(0));
    if (x.first) {
      unroll<N>([&](auto h) AFFNET_LAMBDA {  // else the stores at the end would wait for memory one by one
        __builtin_prefetch(y.first + h * y.stride + offset, 1, 3);
        __builtin_prefetch(y.second + h * y.stride + offset, 1, 3);
      });
      Workspace<N, T>(scratch).inverse(g.column_fft, rows, [&](auto h, V re, V im) AFFNET_LAMBDA {
        const ptrdiff_t at = h * y.stride + offset;
        if constexpr (kKeepEnergy) first_energy += re * re, second_energy += im * im;
        re = load_columns<kAccess>(x, x.first + at) + re * scale;
        im = load_columns<kAccess>(x, x.second + at) + im * scale;
        finite += re * T(0), finite += im * T(0);
        store_columns<kAccess>(y, re, y.first + at);
        store_columns<kAccess>(y, im, y.second + at);
      });
    } else {
      Workspace<N, T>(scratch).inverse(g.column_fft, rows, [&](auto h, V re, V im) AFFNET_LAMBDA {
        if constexpr (kKeepEnergy) first_energy += re * re, second_energy += im * im;
        re.store(y.first + h * y.stride + offset);
        im.store(y.second + h * y.stride + offset);
      });
    }
    if constexpr (kKeepEnergy) add_energy(scratch, v, first_energy, second_energy);
  }
}

// Transforms rows of the spectrum to slots. If `weighted`, slots are multiplied by half their hermitian weight: 1 in
// inner columns, 1/2 in the DC and Nyquist columns.
template <int N, typename T>
__attribute__((noinline)) void rows_to_slots(const Geometry<T>& g, T* slots, bool weighted,
                                             const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = N ? N : g.width;
  const V edge(weighted ? T(0.5) : T(1));
  const ptrdiff_t rows = g.rows, part = g.slot_stride;
  const int count = g.rows < V::kLanes ? g.rows : V::kLanes;
  for (int v = 0; v < vectors_of(g.rows, V::kLanes); ++v) {
    const int row = vector_start(v, g.rows, V::kLanes);
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

// The inverse of rows_to_slots. In the DC and Nyquist columns it takes the mean of Y(kh) and conj Y(-kh), whose inverse
// transform along the height is the real part of the inverse of Y; weighted slots already hold half of each.
template <int N, typename T>
__attribute__((noinline)) void slots_to_rows(const Geometry<T>& g, const T* slots, bool weighted,
                                             const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = N ? N : g.width;
  const V edge(weighted ? T(1) : T(0.5)), edge_shared(weighted ? T(2) : T(1));
  const ptrdiff_t rows = g.rows, part = g.slot_stride;
  const int count = g.rows < V::kLanes ? g.rows : V::kLanes;
  for (int v = 0; v < vectors_of(g.rows, V::kLanes); ++v) {
    const int row = vector_start(v, g.rows, V::kLanes);
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

// Calls f with the length as a compile-time constant if it has straight-line code, else with 0.
template <typename T, typename F>
AFFNET_INLINE void with_length(int length, F&& f) {
  if constexpr (sizeof(T) == 4 && kVecBytes >= 32) {
    const bool is_straight = [&]<size_t... I>(std::index_sequence<I...>) AFFNET_LAMBDA {
      return ((length == kStraightLengths[I] && (f(std::integral_constant<int, kStraightLengths[I]>{}), true)) || ...);
    }(std::make_index_sequence<sizeof(kStraightLengths) / sizeof(kStraightLengths[0])>{});
    if (is_straight) return;
  }
  f(std::integral_constant<int, 0>{});
}

// Calls f with the access, and with whether the energy is kept, as compile-time constants.
template <typename F>
AFFNET_INLINE void with_access(Access access, bool keep_energy, F&& f) {
  const auto call = [&](auto constant) AFFNET_LAMBDA {
    if (keep_energy) {
      f(constant, std::true_type{});
    } else {
      f(constant, std::false_type{});
    }
  };
  switch (access) {
    case Access::kWhole:
      return call(std::integral_constant<Access, Access::kWhole>{});
    case Access::kFirst:
      return call(std::integral_constant<Access, Access::kFirst>{});
    case Access::kHalves:
      if constexpr (kHasHalves) return call(std::integral_constant<Access, Access::kHalves>{});
  }
}

// Calls f(c) for the first channel of each chunk of g.channels channels of a block. The last chunk may overlap the one
// before it; the channels in both are then computed twice, with the same result.
template <typename T, typename F>
AFFNET_INLINE void each_channel_chunk(const Geometry<T>& g, int size, F&& f) {
  for (int i = 0; i < vectors_of(size, g.channels); ++i) f(vector_start(i, size, g.channels));
}

// Computes the slots of g.channels channels, [2, slot_stride] each: g.slots of them, followed by kLanes zeros. If
// asked for, the energy of x is added to that of scratch memory.
template <typename T>
void to_spectrum(const Geometry<T>& g, const Planes<const void>& x, T* slots, bool weighted, bool keep_energy,
                 const TransformScratch<T>& scratch) {
  if (g.runs && g.height == 1) {  // a row of the map is its own transform along the height
    stage(g, x, scratch.rows);
    if (keep_energy) add_staged_energy(g, scratch.rows, scratch);
  } else if (g.long_column_fft.length > 0) {
    stage(g, x, scratch.staging);
    if (keep_energy) add_staged_energy(g, scratch.staging, scratch);
    long_columns_to_rows(g, scratch);
  } else {
    Columns<const T> columns = direct_columns<const T>(g, x);
    if (!columns.first) {
      stage(g, x, scratch.staging);
      columns = staged_columns<const T>(g, scratch.staging);
    }
    with_length<T>(g.height, [&](auto n) AFFNET_LAMBDA {
      with_access(columns.access, keep_energy, [&](auto access, auto keep) AFFNET_LAMBDA {
        columns_to_rows<n, access(), keep()>(g, columns, scratch);
      });
    });
  }
  if (g.height % 2 != 0 && g.planes() % 2 != 0) {
    for (int i = 0; i < g.row_stride; ++i) scratch.rows[g.row_stride + i] = 0;  // the partner of the lone row 0
  }
  if (g.runs) return rows_to_runs(g, scratch.rows, slots, weighted, scratch);
  with_length<T>(g.width, [&](auto n) AFFNET_LAMBDA { rows_to_slots<n>(g, slots, weighted, scratch); });
}

// out = x + scale * inverse(slots). If any value of `out` is not finite, some lane of `finite` is NaN afterwards.
// If asked for, the energy of the inverse is added to that of scratch memory.
template <typename T>
void from_spectrum(const Geometry<T>& g, const T* slots, const Planes<const void>& x, const Planes<void>& out, T scale,
                   bool weighted, bool keep_energy, Vec<T>& finite, const TransformScratch<T>& scratch) {
  if (g.runs) {
    runs_to_rows(g, slots, scratch.rows, weighted, scratch);
  } else {
    with_length<T>(g.width, [&](auto n) AFFNET_LAMBDA { slots_to_rows<n>(g, slots, weighted, scratch); });
  }
  if (g.runs && g.height == 1) {
    if (keep_energy) add_staged_energy(g, scratch.rows, scratch);
    return store_staged(g, scratch.rows, x, out, scale, finite);
  }
  if (g.long_column_fft.length > 0) {
    rows_to_long_columns(g, scratch);
    if (keep_energy) add_staged_energy(g, scratch.staging, scratch);
    return store_staged(g, scratch.staging, x, out, scale, finite);
  }
  const Columns<const T> addend = direct_columns<const T>(g, x);
  const Columns<T> y = addend.first ? direct_columns<T>(g, out) : staged_columns(g, scratch.staging);
  with_length<T>(g.height, [&](auto n) AFFNET_LAMBDA {
    with_access(y.access, keep_energy, [&](auto access, auto keep) AFFNET_LAMBDA {
      rows_to_columns<n, access(), keep()>(g, y, addend, scale, finite, scratch);
    });
  });
  if (!addend.first) store_staged(g, scratch.staging, x, out, scale, finite);
}

}  // namespace affnet::AFFNET_CAPABILITY
