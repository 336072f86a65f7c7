// Discrete Fourier transforms of any length, in memory, by the method that a plan names. Conventions as in codelets.h.
#pragma once

#include "fft/codelets.h"
#include "fft/plan.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
struct Signal {  // [n] complex vectors, real and imaginary parts separate
  Vec<T>* re;
  Vec<T>* im;
  AFFNET_INLINE Signal operator+(ptrdiff_t n) const { return {re + n, im + n}; }
  AFFNET_INLINE Signal swapped() const { return {im, re}; }
};

// z *= (c, s)
template <typename T>
AFFNET_INLINE void multiply(Vec<T>& re, Vec<T>& im, T c, T s) {
  const Vec<T> a = re, b = im;
  re = a * c - b * s, im = a * s + b * c;
}

template <typename T>
Signal<T> fft(const FftPlan<T>& plan, Signal<T> data, Signal<T> work);

// One step of Stockham's autosorting transform: `length` is what remains to be transformed, `stride` what is done.
// Element r of the butterfly (p, q) is at q + stride * (p + parts * r) before, at q + stride * (radix * p + r) after
// it.
template <int R, bool kTwiddled, typename T>
AFFNET_INLINE void butterflies(Signal<T> in, Signal<T> out, int parts, int p, int stride, const T* twiddles) {
  const Vec<T> one = pinned(Vec<T>(T(1)));
  for (int q = 0; q < stride; ++q) {
    dft<R>(
        one,
        [&](auto r, Vec<T>& re, Vec<T>& im)
            AFFNET_LAMBDA { re = in.re[q + stride * (p + parts * r)], im = in.im[q + stride * (p + parts * r)]; },
        [&](auto r, Vec<T> re, Vec<T> im) AFFNET_LAMBDA {
          if constexpr (kTwiddled && r > 0) multiply(re, im, twiddles[2 * (p * R + r)], twiddles[2 * (p * R + r) + 1]);
          out.re[q + stride * (R * p + r)] = re, out.im[q + stride * (R * p + r)] = im;
        });
  }
}

template <int R, typename T>
void stockham_step(Signal<T> in, Signal<T> out, int length, int stride, const T* twiddles) {
  const int parts = length / R;
  butterflies<R, false>(in, out, parts, 0, stride, twiddles);
  for (int p = 1; p < parts; ++p) butterflies<R, true>(in, out, parts, p, stride, twiddles);
}

// The same for a radix without a codelet. Its own transform works in the memory beyond the first plan.length vectors of
// `in` and `out`.
template <typename T>
void stockham_step(const FftPlan<T>& plan, const FftStep<T>& step, Signal<T> in, Signal<T> out, int length,
                   int stride) {
  const int radix = step.radix, parts = length / radix;
  const Signal<T> data = in + plan.length, work = out + plan.length;
  for (int p = 0; p < parts; ++p) {
    for (int q = 0; q < stride; ++q) {
      for (int r = 0; r < radix; ++r) {
        const ptrdiff_t at = q + static_cast<ptrdiff_t>(stride) * (p + parts * r);
        data.re[r] = in.re[at], data.im[r] = in.im[at];
      }
      const Signal<T> z = fft(*step.inner, data, work);
      for (int r = 0; r < radix; ++r) {
        const T* const twiddle = step.twiddles + 2 * (p * radix + r);
        const ptrdiff_t at = q + static_cast<ptrdiff_t>(stride) * (radix * p + r);
        multiply(z.re[r], z.im[r], twiddle[0], twiddle[1]);
        out.re[at] = z.re[r], out.im[at] = z.im[r];
      }
    }
  }
}

template <typename T>
Signal<T> stockham(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  int length = plan.length, stride = 1;
  for (int i = 0; i < plan.step_count; ++i) {
    const FftStep<T>& step = plan.steps[i];
    const bool is_codelet = [&]<size_t... I>(std::index_sequence<I...>) {
      return ((step.radix == kCodelets[I].radix &&
               (stockham_step<kCodelets[I].radix>(data, work, length, stride, step.twiddles), true)) ||
              ...);
    }(std::make_index_sequence<sizeof(kCodelets) / sizeof(kCodelets[0])>{});
    if (!is_codelet) stockham_step(plan, step, data, work, length, stride);
    const Signal<T> other = data;
    data = work, work = other;
    length /= step.radix;
    stride *= step.radix;
  }
  return data;
}

// Outputs k and length - k for N values of k from `first` on. `in` holds the sums x[i] + x[length - i] at i and the
// differences at length - i, for i up to half; every loaded one is used in N products.
template <int N, typename T>
AFFNET_INLINE void direct_outputs(const FftPlan<T>& plan, Signal<T> in, Signal<T> out, int first) {
  using V = Vec<T>;
  const int n = plan.length, half = (n - 1) / 2;
  V even_re[N], even_im[N], odd_re[N], odd_im[N];
  unroll<N>([&](auto k) AFFNET_LAMBDA {
    even_re[k] = in.re[0], even_im[k] = in.im[0];
    odd_re[k] = odd_im[k] = V(T(0));
  });
  const T* const roots = plan.roots + static_cast<ptrdiff_t>(2) * (first - 1) * half;
  for (int i = 1; i <= half; ++i) {
    const V sum_re = in.re[i], sum_im = in.im[i], difference_re = in.re[n - i], difference_im = in.im[n - i];
    unroll<N>([&](auto k) AFFNET_LAMBDA {
      const T c = roots[2 * (k * half + i - 1)], s = roots[2 * (k * half + i - 1) + 1];
      even_re[k] += sum_re * c, even_im[k] += sum_im * c;
      odd_re[k] += difference_re * s, odd_im[k] += difference_im * s;
    });
  }
  unroll<N>([&](auto k) AFFNET_LAMBDA {
    out.re[first + k] = even_re[k] + odd_im[k], out.im[first + k] = even_im[k] - odd_re[k];
    out.re[n - first - k] = even_re[k] - odd_im[k], out.im[n - first - k] = even_im[k] + odd_re[k];
  });
}

// The algorithm of dft_odd_prime in codelets.h, in loops. Overwrites `data` with sums and differences.
template <typename T>
Signal<T> direct(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  using V = Vec<T>;
  constexpr int kOutputs = kVecBytes == 64 ? 6 : 2;  // as many as have their sums in registers
  const int n = plan.length, half = (n - 1) / 2;
  V all_re = data.re[0], all_im = data.im[0];
  for (int i = 1; i <= half; ++i) {
    const V re = data.re[i], im = data.im[i], mirror_re = data.re[n - i], mirror_im = data.im[n - i];
    data.re[i] = re + mirror_re, data.im[i] = im + mirror_im;
    data.re[n - i] = re - mirror_re, data.im[n - i] = im - mirror_im;
    all_re += data.re[i], all_im += data.im[i];
  }
  int k = 1;
  for (; k + kOutputs <= half + 1; k += kOutputs) direct_outputs<kOutputs>(plan, data, work, k);
  for (; k <= half; ++k) direct_outputs<1>(plan, data, work, k);
  work.re[0] = all_re, work.im[0] = all_im;
  return work;
}

// The circular convolution of `data` with the plan's kernel, with `addend` added to every element; `sum` is the sum
// over `data`.
template <typename T>
Signal<T> convolve(const FftPlan<T>& plan, Signal<T> data, Signal<T> work, Vec<T> addend_re, Vec<T> addend_im,
                   Vec<T>& sum_re, Vec<T>& sum_im) {
  const FftPlan<T>& convolution = *plan.convolution;
  const Signal<T> z = fft(convolution, data, work);
  sum_re = z.re[0], sum_im = z.im[0];
  for (int k = 0; k < convolution.length; ++k) {
    multiply(z.re[k], z.im[k], plan.kernel_spectrum[2 * k], plan.kernel_spectrum[2 * k + 1]);
  }
  z.re[0] += addend_re, z.im[0] += addend_im;
  const Signal<T> other = z.re == data.re ? work : data;
  return fft(convolution, z.swapped(), other.swapped()).swapped();
}

// Rader's algorithm: all outputs but the first are x[0] plus a convolution of the other inputs, where inputs and
// outputs are taken in the order of a generator's powers.
template <typename T>
Signal<T> rader(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  using V = Vec<T>;
  const int m = plan.length - 1;
  const V first_re = data.re[0], first_im = data.im[0];
  for (int i = 0; i < m; ++i) work.re[i] = data.re[plan.powers[i]], work.im[i] = data.im[plan.powers[i]];
  V sum_re, sum_im;
  const Signal<T> z = convolve(plan, work, data, first_re, first_im, sum_re, sum_im);
  const Signal<T> out = z.re == data.re ? work : data;
  out.re[0] = first_re + sum_re, out.im[0] = first_im + sum_im;
  const int* const powers = plan.powers + m;
  for (int i = 0; i < m; ++i) out.re[powers[i]] = z.re[i], out.im[powers[i]] = z.im[i];
  return out;
}

// Bluestein's algorithm: multiplication by a chirp, a convolution with its conjugate, multiplication by it again.
template <typename T>
Signal<T> bluestein(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  using V = Vec<T>;
  const V zero(T(0));
  const auto multiply_by_chirp = [&](Signal<T> z) AFFNET_LAMBDA {
    for (int i = 0; i < plan.length; ++i) multiply(z.re[i], z.im[i], plan.chirp[2 * i], plan.chirp[2 * i + 1]);
  };
  multiply_by_chirp(data);
  for (int i = plan.length; i < plan.convolution->length; ++i) data.re[i] = data.im[i] = zero;
  V sum_re, sum_im;
  const Signal<T> z = convolve(plan, data, work, zero, zero, sum_re, sum_im);
  multiply_by_chirp(z);
  return z;
}

// Transforms `data`. Both arguments hold plan.work_length vectors in each part and are overwritten; the result is in
// the one that is returned.
template <typename T>
__attribute__((noinline)) Signal<T> fft(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  switch (plan.method) {
    case FftMethod::kSteps:
      return stockham(plan, data, work);
    case FftMethod::kDirect:
      return direct(plan, data, work);
    case FftMethod::kRader:
      return rader(plan, data, work);
    case FftMethod::kBluestein:
      return bluestein(plan, data, work);
  }
  __builtin_unreachable();
}

}  // namespace affnet::AFFNET_CAPABILITY
