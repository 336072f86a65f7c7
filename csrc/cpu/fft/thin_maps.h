// Transforms of thin maps, whose rows become runs of slots. The lanes of a vector are rows of different channels, or
// the parts of one long row or column. See Geometry.
#pragma once

#include "fft/long_fft.h"
#include "hermitian_weight.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
AFFNET_INLINE void negate(Vec<T>* z, int count) {
  for (int k = 0; k < count; ++k) z[k] = -z[k];
}

// Stores or loads `length` vectors as runs: lane l is the run at offsets[l].
template <typename T>
void store_runs(Signal<T> z, T* slots, const int* offsets, int count, int length, ptrdiff_t part) {
  scatter_rows<0>(z.re, slots, offsets, count, length);
  scatter_rows<0>(z.im, slots + part, offsets, count, length);
}
template <typename T>
void load_runs(Signal<T> z, const T* slots, const int* offsets, int length, ptrdiff_t part) {
  gather_rows<0>(z.re, slots, offsets, length);
  gather_rows<0>(z.im, slots + part, offsets, length);
}

// Splits the spectrum z of a long row into its two runs, a and b, as rows_to_slots does. `inner` is
// the factor of the inner columns, `edge` that of the others.
template <bool kShared, typename T>
__attribute__((noinline)) void long_row_to_runs(int width, T edge, T inner, Parts<const T> z, Parts<T> a, Parts<T> b) {
  const T* __restrict re = z.re, * __restrict im = z.im;
  T* __restrict a_re = a.re, * __restrict a_im = a.im, * __restrict b_re = b.re, * __restrict b_im = b.im;
  const auto store = [&](int k, int mirror, T factor) AFFNET_LAMBDA {
    const T p_re = re[k], p_im = im[k], q_re = re[mirror], q_im = im[mirror];
    a_re[k] = (kShared ? p_re + q_re : p_re) * factor, a_im[k] = (kShared ? p_im - q_im : p_im) * factor;
    b_re[k] = (kShared ? p_im + q_im : q_re) * factor, b_im[k] = (kShared ? q_re - p_re : -q_im) * factor;
  };
  store(0, 0, edge);
  for (int k = 1; 2 * k < width; ++k) store(k, width - k, inner);
  if (width % 2 == 0) store(width / 2, width / 2, edge);
}

// The inverse of long_row_to_runs, as in slots_to_rows. Mirrored runs must have been added to a and b.
template <bool kShared, typename T>
__attribute__((noinline)) void runs_to_long_row(int width, T edge, T edge_shared, Parts<const T> a, Parts<const T> b,
                                                Parts<T> z) {
  const T* __restrict a_re = a.re, * __restrict a_im = a.im, * __restrict b_re = b.re, * __restrict b_im = b.im;
  T* __restrict re = z.re, * __restrict im = z.im;
  const auto store_edge = [&](int k) AFFNET_LAMBDA {
    re[k] = kShared ? a_re[k] * edge_shared : (a_re[k] + b_re[k]) * edge;
    im[k] = kShared ? b_re[k] * edge_shared : (a_im[k] - b_im[k]) * edge;
  };
  store_edge(0);
  for (int k = 1; 2 * k < width; ++k) {
    re[k] = kShared ? a_re[k] - b_im[k] : a_re[k], im[k] = kShared ? a_im[k] + b_re[k] : a_im[k];
    re[width - k] = kShared ? a_re[k] + b_im[k] : b_re[k], im[width - k] = kShared ? b_re[k] - a_im[k] : -b_im[k];
  }
  if (width % 2 == 0) store_edge(width / 2);
}

// The buffers of long_fft, in scratch memory.
template <typename T>
struct LongBuffers {
  Parts<T> of[3];
  LongBuffers(const LongPlan<T>& plan, const TransformScratch<T>& scratch) {
    T* next = scratch.long_signals;
    for (Parts<T>& parts : of) {
      parts = {next, next + long_buffer(plan)};
      next += 2 * long_buffer(plan);
    }
  }
};

// Like columns_to_rows, for columns in staging memory that are so long and so few that each pair is transformed on its
// own.
template <typename T>
void long_columns_to_rows(const Geometry<T>& g, const TransformScratch<T>& scratch) {
  const LongBuffers<T> buffers(g.long_column_fft, scratch);
  const Parts<T> z = buffers.of[1], Z = buffers.of[0];
  const ptrdiff_t part = g.row_stride;
  for (int j = 0; j < g.pairs; ++j) {
    const T* column = scratch.staging + j;
    for (int h = 0; h < g.height; ++h, column += g.staging_stride) z.re[h] = column[0], z.im[h] = column[g.pairs];
    long_fft<T>(g.long_column_fft, z, buffers.of, scratch);
    T* first = scratch.rows + j;
    for (int k = 0; 2 * k <= g.height; ++k) {
      T* const second = first + g.pairs;
      if (hermitian_weight(k, g.height) == 1) {
        const ptrdiff_t row = k == 0 ? 0 : part - 2 * k * part;
        first[row] = Z.re[k], second[row] = Z.im[k];
      } else {
        const int mirror = g.height - k;
        first[0] = Z.re[k] + Z.re[mirror], first[part] = Z.im[k] - Z.im[mirror];
        second[0] = Z.im[k] + Z.im[mirror], second[part] = Z.re[mirror] - Z.re[k];
      }
      first += 2 * part;
    }
  }
}

// The inverse of long_columns_to_rows without its factor, to staging memory.
template <typename T>
void rows_to_long_columns(const Geometry<T>& g, const TransformScratch<T>& scratch) {
  const LongBuffers<T> buffers(g.long_column_fft, scratch);
  const Parts<T> z = buffers.of[0], Z = buffers.of[1];
  const ptrdiff_t part = g.row_stride;
  for (int j = 0; j < g.pairs; ++j) {
    const T* first = scratch.rows + j;
    for (int k = 0; 2 * k <= g.height; ++k) {
      const T* const second = first + g.pairs;
      if (hermitian_weight(k, g.height) == 1) {
        const ptrdiff_t row = k == 0 ? 0 : part - 2 * k * part;
        Z.re[k] = first[row], Z.im[k] = second[row];
      } else {
        const int mirror = g.height - k;
        Z.re[k] = first[0] - second[part], Z.im[k] = first[part] + second[0];
        Z.re[mirror] = first[0] + second[part], Z.im[mirror] = second[0] - first[part];
      }
      first += 2 * part;
    }
    const Parts<T> inverse[3] = {z.swapped(), Z, buffers.of[2]};
    long_fft<T>(g.long_column_fft, Z.swapped(), inverse, scratch);
    T* column = scratch.staging + j;
    for (int h = 0; h < g.height; ++h, column += g.staging_stride) column[0] = z.re[h], column[g.pairs] = z.im[h];
  }
}

template <typename T>
void long_rows_to_runs(const Geometry<T>& g, const T* rows, T* slots, bool weighted,
                       const TransformScratch<T>& scratch) {
  const int width = g.width, mirrored = width - (width / 2 + 1);
  const ptrdiff_t part = g.slot_stride;
  const T edge(weighted ? T(0.5) : T(1)), inner = g.mirrored ? edge : T(1);
  const LongBuffers<T> buffers(g.long_row_fft, scratch);
  const auto run = [&](int start) { return Parts<T>{slots + start, slots + start + part}; };
  for (int row = 0; row < g.rows; ++row) {
    long_fft<T>(g.long_row_fft, {rows + g.row_re[row], rows + g.row_im[row]}, buffers.of, scratch);
    const bool lone = g.run_first[row] == g.run_second[row];
    const Parts<T> a = run(g.run_first[row]), b = lone ? buffers.of[1] : run(g.run_second[row]);
    if (g.row_shared[row] != 0) {
      long_row_to_runs<true, T>(width, edge, inner, buffers.of[0], a, b);
    } else {
      long_row_to_runs<false, T>(width, edge, inner, buffers.of[0], a, b);
    }
    if (!g.mirrored) continue;
    const auto mirror = [&](Parts<T> from, Parts<T> to) {
      for (int k = 0; k < mirrored; ++k) to.re[k] = from.re[k + 1], to.im[k] = -from.im[k + 1];
    };
    mirror(a, run(g.mirrored_first[row]));
    if (!lone) mirror(b, run(g.mirrored_second[row]));
  }
}

template <typename T>
void runs_to_long_rows(const Geometry<T>& g, const T* slots, T* rows, bool weighted,
                       const TransformScratch<T>& scratch) {
  const int width = g.width, frequencies = width / 2 + 1, mirrored = width - frequencies;
  const ptrdiff_t part = g.slot_stride;
  const T edge(weighted ? T(1) : T(0.5)), edge_shared(weighted ? T(2) : T(1));
  const LongBuffers<T> buffers(g.long_row_fft, scratch);
  const auto run = [&](int start) { return Parts<const T>{slots + start, slots + start + part}; };
  // As in runs_to_rows.
  const auto add_mirrored = [&](Parts<const T> from, Parts<const T> other, Parts<T> to) {
    to.re[0] = from.re[0], to.im[0] = from.im[0];
    for (int k = 1; k < frequencies; ++k) to.re[k] = from.re[k], to.im[k] = from.im[k];
    for (int k = 1; k <= mirrored; ++k) {
      to.re[k] = (from.re[k] + other.re[k - 1]) * edge, to.im[k] = (from.im[k] - other.im[k - 1]) * edge;
    }
    return Parts<const T>(to);
  };
  for (int row = 0; row < g.rows; ++row) {
    const Parts<T> z = buffers.of[1];
    Parts<const T> a = run(g.run_first[row]), b = run(g.run_second[row]);
    if (g.mirrored) {
      a = add_mirrored(a, run(g.mirrored_first[row]), buffers.of[0]);
      b = add_mirrored(b, run(g.mirrored_second[row]), buffers.of[2]);
    }
    if (g.row_shared[row] != 0) {
      runs_to_long_row<true, T>(width, edge, edge_shared, a, b, z);
    } else {
      runs_to_long_row<false, T>(width, edge, edge_shared, a, b, z);
    }
    const Parts<T> inverse[3] = {buffers.of[0].swapped(), z, buffers.of[2]};
    long_fft<T>(g.long_row_fft, z.swapped(), inverse, scratch);
    T* const re = rows + g.row_re[row];
    T* const im = rows + g.row_im[row];
    for (int w = 0; w < width; ++w) re[w] = buffers.of[0].re[w], im[w] = buffers.of[0].im[w];
  }
}

// Like rows_to_slots, for rows of several channels.
template <typename T>
__attribute__((noinline)) void rows_to_runs(const Geometry<T>& g, const T* rows, T* slots, bool weighted,
                                            const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  const int width = g.width, frequencies = width / 2 + 1, mirrored = width - frequencies;
  const ptrdiff_t part = g.slot_stride;
  const T edge(weighted ? T(0.5) : T(1));
  const int count = g.rows < V::kLanes ? g.rows : V::kLanes;
  for (int c = 0; c < g.channels; ++c) {
    V(T(0)).store(slots + 2 * c * part + g.slots);
    V(T(0)).store(slots + (2 * c + 1) * part + g.slots);
  }
  if (g.long_row_fft.length > 0) return long_rows_to_runs(g, rows, slots, weighted, scratch);
  for (int v = 0; v < vectors_of(g.rows, V::kLanes); ++v) {
    const int row = vector_start(v, g.rows, V::kLanes);
    const Mask<T> shared = V::load(g.row_shared + row) > V(T(0));
    const Signal<T> data{scratch.fft[0], scratch.fft[1]}, work{scratch.fft[2], scratch.fft[3]};
    gather_rows<0>(data.re, rows, g.row_re + row, width);
    gather_rows<0>(data.im, rows, g.row_im + row, width);
    const Signal<T> second = fft(g.row_fft, data, work), first = second.re == data.re ? work : data;
    for (int k = 0; k < frequencies; ++k) {
      const int mirror = k == 0 ? 0 : width - k;
      const V p_re = second.re[k], p_im = second.im[k], q_re = second.re[mirror], q_im = second.im[mirror];
      const V factor(g.mirrored || hermitian_weight(k, width) == 1 ? edge : T(1));
      first.re[k] = select(shared, p_re + q_re, p_re) * factor;
      first.im[k] = select(shared, p_im - q_im, p_im) * factor;
      second.re[k] = select(shared, p_im + q_im, q_re) * factor;
      second.im[k] = select(shared, q_re - p_re, -q_im) * factor;
    }
    // The second run of a lone row has the address of its first, which overwrites it.
    store_runs(second, slots, g.run_second + row, count, frequencies, part);
    store_runs(first, slots, g.run_first + row, count, frequencies, part);
    if (g.mirrored && mirrored > 0) {
      negate(second.im + 1, mirrored), negate(first.im + 1, mirrored);
      store_runs(second + 1, slots, g.mirrored_second + row, count, mirrored, part);
      store_runs(first + 1, slots, g.mirrored_first + row, count, mirrored, part);
    }
  }
}

// The inverse of rows_to_runs.
template <typename T>
__attribute__((noinline)) void runs_to_rows(const Geometry<T>& g, const T* slots, T* rows, bool weighted,
                                            const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  if (g.long_row_fft.length > 0) return runs_to_long_rows(g, slots, rows, weighted, scratch);
  const int width = g.width, frequencies = width / 2 + 1, mirrored = width - frequencies;
  const ptrdiff_t part = g.slot_stride;
  const V edge(weighted ? T(1) : T(0.5)), edge_shared(weighted ? T(2) : T(1));
  const int count = g.rows < V::kLanes ? g.rows : V::kLanes;
  const Signal<T> first{scratch.fft[0], scratch.fft[1]}, second{scratch.fft[2], scratch.fft[3]};
  // The only column of such a map is its DC column: take the mean of Y(k) and conj Y(-k).
  const auto add_mirrored = [&](Signal<T> z, const int* offsets) {
    const Signal<T> other = second + frequencies;
    load_runs(other, slots, offsets, mirrored, part);
    for (int k = 1; k <= mirrored; ++k) {
      z.re[k] = (z.re[k] + other.re[k - 1]) * edge, z.im[k] = (z.im[k] - other.im[k - 1]) * edge;
    }
  };
  for (int v = 0; v < vectors_of(g.rows, V::kLanes); ++v) {
    const int row = vector_start(v, g.rows, V::kLanes);
    const Mask<T> shared = V::load(g.row_shared + row) > V(T(0));
    load_runs(first, slots, g.run_first + row, frequencies, part);
    load_runs(second, slots, g.run_second + row, frequencies, part);
    if (g.mirrored && mirrored > 0) {
      add_mirrored(first, g.mirrored_first + row);
      add_mirrored(second, g.mirrored_second + row);
    }
    for (int k = 0; k < frequencies; ++k) {
      const V a_re = first.re[k], a_im = first.im[k], b_re = second.re[k], b_im = second.im[k];
      if (hermitian_weight(k, width) == 1) {
        first.re[k] = select(shared, a_re * edge_shared, (a_re + b_re) * edge);
        first.im[k] = select(shared, b_re * edge_shared, (a_im - b_im) * edge);
      } else {
        first.re[k] = select(shared, a_re - b_im, a_re), first.im[k] = select(shared, a_im + b_re, a_im);
        first.re[width - k] = select(shared, a_re + b_im, b_re);
        first.im[width - k] = select(shared, b_re - a_im, -b_im);
      }
    }
    const Signal<T> z = fft(g.row_fft, first.swapped(), second).swapped();
    scatter_rows<0>(z.re, rows, g.row_re + row, count, width);
    scatter_rows<0>(z.im, rows, g.row_im + row, count, width);
  }
}

}  // namespace affnet::AFFNET_CAPABILITY
