// Discrete Fourier transforms of any length, in memory: steps of fft.h in a loop. Conventions as there.
#pragma once

#include "fft/codelets.h"
#include "kernel.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
struct Signal {  // [n] complex vectors, real and imaginary parts apart
  Vec<T>* re;
  Vec<T>* im;
};

// One step of Stockham's autosorting transform. `length` is what remains to be transformed, `stride` what is done.
template <int R, typename T>
void stockham_step(Signal<T> in, Signal<T> out, int length, int stride, const T* twiddles) {
  const int parts = length / R;
  const Vec<T> one = pinned(Vec<T>(T(1)));
  for (int p = 0; p < parts; ++p) {
    for (int q = 0; q < stride; ++q) {
      dft<R>(
          one,
          [&](auto r, Vec<T>& re, Vec<T>& im)
              AFFNET_LAMBDA { re = in.re[q + stride * (p + parts * r)], im = in.im[q + stride * (p + parts * r)]; },
          [&](auto r, Vec<T> re, Vec<T> im) AFFNET_LAMBDA {
            if constexpr (r > 0) {
              const T c = twiddles[2 * (p * R + r)], s = twiddles[2 * (p * R + r) + 1];
              const Vec<T> a = re, b = im;
              re = a * c - b * s, im = a * s + b * c;
            }
            out.re[q + stride * (R * p + r)] = re, out.im[q + stride * (R * p + r)] = im;
          });
    }
  }
}

// The same for a larger prime: sums over a table of its roots of unity, which follow the twiddles.
template <typename T>
void stockham_prime_step(Signal<T> in, Signal<T> out, int radix, int length, int stride, const T* twiddles) {
  const int parts = length / radix;
  const T* roots = twiddles + 2 * length;
  for (int p = 0; p < parts; ++p) {
    for (int q = 0; q < stride; ++q) {
      for (int k = 0; k < radix; ++k) {
        Vec<T> re(T(0)), im(T(0));
        for (int r = 0, turn = 0; r < radix; ++r, turn = (turn + k) % radix) {
          const T c = roots[2 * turn], s = roots[2 * turn + 1];
          const Vec<T> a = in.re[q + stride * (p + parts * r)], b = in.im[q + stride * (p + parts * r)];
          re += a * c - b * s, im += a * s + b * c;
        }
        const T c = twiddles[2 * (p * radix + k)], s = twiddles[2 * (p * radix + k) + 1];
        out.re[q + stride * (radix * p + k)] = re * c - im * s;
        out.im[q + stride * (radix * p + k)] = re * s + im * c;
      }
    }
  }
}

// Transforms `data` by the plan's steps; `work` is as long. The answer is in one of them, which is returned.
template <typename T>
Signal<T> stockham(const FftSteps<T>& steps, Signal<T> data, Signal<T> work) {
  int length = steps.length, stride = 1;
  for (int i = 0; i < steps.count; ++i) {
    const int radix = steps.radix[i];
    const T* twiddles = steps.twiddles[i];
    switch (radix) {
      case 2:
        stockham_step<2>(data, work, length, stride, twiddles);
        break;
      case 3:
        stockham_step<3>(data, work, length, stride, twiddles);
        break;
      case 4:
        stockham_step<4>(data, work, length, stride, twiddles);
        break;
      case 5:
        stockham_step<5>(data, work, length, stride, twiddles);
        break;
      case 7:
        stockham_step<7>(data, work, length, stride, twiddles);
        break;
      case 8:
        stockham_step<8>(data, work, length, stride, twiddles);
        break;
      case 11:
        stockham_step<11>(data, work, length, stride, twiddles);
        break;
      case 13:
        stockham_step<13>(data, work, length, stride, twiddles);
        break;
      default:
        stockham_prime_step(data, work, radix, length, stride, twiddles);
    }
    const Signal<T> swap = data;
    data = work;
    work = swap;
    length /= radix;
    stride *= radix;
  }
  return data;
}

// Bluestein: a transform of any length as a circular convolution with a chirp, by transforms of a power of two.
template <typename T>
Signal<T> bluestein(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  const int n = plan.length, m = plan.steps.length;
  const auto multiply = [](Signal<T> z, int i, T c, T s) AFFNET_LAMBDA {
    const Vec<T> a = z.re[i], b = z.im[i];
    z.re[i] = a * c - b * s, z.im[i] = a * s + b * c;
  };
  for (int i = 0; i < n; ++i) multiply(data, i, plan.chirp[2 * i], plan.chirp[2 * i + 1]);
  for (int i = n; i < m; ++i) data.re[i] = data.im[i] = Vec<T>(T(0));
  const Signal<T> spectrum = stockham(plan.steps, data, work);
  for (int i = 0; i < m; ++i) multiply(spectrum, i, plan.chirp_spectrum[2 * i], plan.chirp_spectrum[2 * i + 1]);
  const Signal<T> free = spectrum.re == data.re ? work : data;
  const Signal<T> swapped = stockham(plan.steps, Signal<T>{spectrum.im, spectrum.re}, Signal<T>{free.im, free.re});
  const Signal<T> answer{swapped.im, swapped.re};
  for (int i = 0; i < n; ++i) multiply(answer, i, plan.chirp[2 * i], plan.chirp[2 * i + 1]);
  return answer;
}

// Any length; both arguments hold plan.work_length vectors in each part.
template <typename T>
__attribute__((noinline)) Signal<T> fft(const FftPlan<T>& plan, Signal<T> data, Signal<T> work) {
  return plan.chirp ? bluestein(plan, data, work) : stockham(plan.steps, data, work);
}

}  // namespace affnet::AFFNET_CAPABILITY
