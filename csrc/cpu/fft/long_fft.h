// The transform of one long signal, whose own elements fill the lanes.
#pragma once

#include "fft/vector_transforms.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
struct Parts {  // complex numbers, real and imaginary parts apart
  T* re;
  T* im;
  AFFNET_INLINE Parts swapped() const { return {im, re}; }
  AFFNET_INLINE operator Parts<const T>() const { return {re, im}; }
};

// The length of each part of each of the three buffers of long_fft, including what whole vectors reach beyond the end.
template <typename T>
ptrdiff_t long_buffer(const LongPlan<T>& plan) {
  return static_cast<ptrdiff_t>(plan.first) * plan.pitch + 2 * Vec<T>::kLanes;
}

// A transform of length first * second. Input n = n1 * second + n2 is element (n1, n2) of a matrix; the steps are
// transforms along n1 with a lane for each n2, multiplication by twiddles, a transpose, and transforms along n2 with a
// lane for each k1, which give output k = k1 + first * k2.
template <typename T>
void four_steps(const LongPlan<T>& plan, Parts<const T> from, Parts<T> to, Parts<T> matrix,
                const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes;
  const Signal<T> data{scratch.fft[0], scratch.fft[1]}, work{scratch.fft[2], scratch.fft[3]};
  const int first = plan.first, second = plan.second;
  for (int v = 0; v < vectors_of(second, kLanes); ++v) {
    const int lane = vector_start(v, second, kLanes);
    for (int n = 0; n < first; ++n) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(n) * second + lane;
      data.re[n] = V::load(from.re + at), data.im[n] = V::load(from.im + at);
    }
    const Signal<T> z = fft(plan.first_fft, data, work);
    for (int k = 0; k < first; ++k) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(k) * second + lane;
      const V c = V::load(plan.twiddles[0] + at), s = V::load(plan.twiddles[1] + at);
      (z.re[k] * c - z.im[k] * s).store(matrix.re + plan.rows[k] + lane);
      (z.re[k] * s + z.im[k] * c).store(matrix.im + plan.rows[k] + lane);
    }
  }
  for (int v = 0; v < vectors_of(first, kLanes); ++v) {
    const int lane = vector_start(v, first, kLanes);
    gather_rows<0>(data.re, matrix.re, plan.rows + lane, second);
    gather_rows<0>(data.im, matrix.im, plan.rows + lane, second);
    const Signal<T> z = fft(plan.second_fft, data, work);
    for (int k = 0; k < second; ++k) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(k) * first + lane;
      z.re[k].store(to.re + at), z.im[k].store(to.im + at);
    }
  }
}

// to = from * factor, element by element.
template <typename T>
void multiply(Parts<const T> from, const T* const (&factor)[2], Parts<T> to, int count) {
  using V = Vec<T>;
  for (int i = 0; i < count; i += V::kLanes) {
    const int lanes = count - i < V::kLanes ? count - i : V::kLanes;
    const V a = load_first(from.re + i, lanes), b = load_first(from.im + i, lanes);
    const V c = load_first(factor[0] + i, lanes), s = load_first(factor[1] + i, lanes);
    store_first(a * c - b * s, to.re + i, lanes), store_first(a * s + b * c, to.im + i, lanes);
  }
}

// Transforms `from`, which may be buffers[1], into buffers[0]. As in codelets.h, exchanging the parts of both makes it
// the inverse.
template <typename T>
void long_fft(const LongPlan<T>& plan, Parts<const T> from, const Parts<T> (&buffers)[3],
              const TransformScratch<T>& scratch) {
  const auto [to, other, matrix] = buffers;
  if (!plan.chirp[0]) return four_steps(plan, from, to, matrix, scratch);
  const int m = plan.first * plan.second;
  multiply<T>(from, plan.chirp, other, plan.length);
  for (int i = plan.length; i < m; ++i) other.re[i] = other.im[i] = T(0);
  four_steps<T>(plan, other, to, matrix, scratch);
  multiply<T>(to, plan.kernel_spectrum, to, m);
  four_steps<T>(plan, to.swapped(), other.swapped(), matrix, scratch);
  multiply<T>(other, plan.chirp, to, plan.length);
}

}  // namespace affnet::AFFNET_CAPABILITY
