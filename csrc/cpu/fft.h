// Discrete Fourier transforms of whole vectors: every lane is a transform of its own, so no step shuffles lanes.
//
// All are forward, natural order in and out, unnormalised; the inverse is the same with re and im exchanged.
#pragma once

#include "kernel.h"
#include "vec.h"

namespace affnet::AFFNET_CAPABILITY {

constexpr double kPi = 3.14159265358979323846;

// cos(2 pi k / n) at compile time: reduced to [0, pi / 4], then a Taylor series.
constexpr double cos_turn(int k, int n) {
  const auto taylor = [](double angle, bool sine) {
    double term = sine ? angle : 1, sum = term;
    for (int i = sine ? 2 : 1; i < 28; i += 2) {
      term *= -angle * angle / (i * (i + 1));
      sum += term;
    }
    return sum;
  };
  k = (k % n + n) % n;
  if (2 * k > n) k = n - k;
  if (4 * k > n) return -cos_turn(n - 2 * k, 2 * n);
  if (8 * k > n) return taylor(2 * kPi * (n - 4 * k) / (4.0 * n), true);
  return taylor(2 * kPi * k / n, false);
}
constexpr double sin_turn(int k, int n) { return cos_turn(4 * k - n, 4 * n); }

// (re, im) *= exp(-2 pi i K / N).
template <int K, int N, typename V>
AFFNET_INLINE void rotate(V& re, V& im) {
  using T = typename V::Scalar;
  constexpr int k = K % N;
  const V a = re, b = im;
  if constexpr (k == 0) {
  } else if constexpr (4 * k == N) {
    re = b, im = -a;
  } else if constexpr (2 * k == N) {
    re = -a, im = -b;
  } else if constexpr (8 * k == N || 8 * k == 3 * N) {
    constexpr T c = T(cos_turn(1, 8));
    const V sum = (a + b) * c, difference = (b - a) * c;
    re = 8 * k == N ? sum : difference;
    im = 8 * k == N ? difference : -sum;
  } else {
    constexpr T c = T(cos_turn(k, N)), s = T(sin_turn(k, N));
    re = a * c + b * s;
    im = b * c - a * s;
  }
}

constexpr int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// The first factor to split n by: its power of two if it has another factor, else the smaller about-half; n if prime.
constexpr int first_factor(int n) {
  int power = 1;
  while (n % (2 * power) == 0) power *= 2;
  if (power == n) return n <= 8 ? 2 : n <= 32 ? 4 : 8;
  if (power > 1) return power;
  for (int f = 3; f * f <= n; f += 2) {
    if (n % f == 0) return f;
  }
  return n;
}

template <int N, typename V>
AFFNET_INLINE void dft(V* re, V* im);

// Odd prime length: cosine sums of x[n] + x[N - n] and sine sums of x[n] - x[N - n].
template <int N, typename V>
AFFNET_INLINE void dft_odd_prime(V* re, V* im) {
  using T = typename V::Scalar;
  constexpr int kHalf = (N - 1) / 2;
  V sum_re[kHalf], sum_im[kHalf], difference_re[kHalf], difference_im[kHalf];
  const V first_re = re[0], first_im = im[0];
  unroll<kHalf>([&](auto i) AFFNET_LAMBDA {
    constexpr int n = i + 1;
    sum_re[i] = re[n] + re[N - n], sum_im[i] = im[n] + im[N - n];
    difference_re[i] = re[n] - re[N - n], difference_im[i] = im[n] - im[N - n];
    re[0] += sum_re[i], im[0] += sum_im[i];
  });
  unroll<kHalf>([&](auto j) AFFNET_LAMBDA {
    constexpr int k = j + 1;
    V even_re = first_re, even_im = first_im, odd_re, odd_im;
    unroll<kHalf>([&](auto i) AFFNET_LAMBDA {
      constexpr T c = T(cos_turn(k * (i + 1), N)), s = T(sin_turn(k * (i + 1), N));
      even_re = even_re + sum_re[i] * c, even_im = even_im + sum_im[i] * c;
      odd_re = i == 0 ? difference_re[i] * s : odd_re + difference_re[i] * s;
      odd_im = i == 0 ? difference_im[i] * s : odd_im + difference_im[i] * s;
    });
    re[k] = even_re + odd_im, im[k] = even_im - odd_re;
    re[N - k] = even_re - odd_im, im[N - k] = even_im + odd_re;
  });
}

// Length A * B. Coprime factors need no rotations between the two steps (Good and Thomas), others do (Cooley and
// Tukey).
template <int A, int B, typename V>
AFFNET_INLINE void dft_composite(V* re, V* im) {
  constexpr int N = A * B;
  constexpr bool kCoprime = greatest_common_divisor(A, B) == 1;
  V step_re[N], step_im[N];  // [A][B]
  unroll<B>([&](auto b) AFFNET_LAMBDA {
    V part_re[A], part_im[A];
    unroll<A>([&](auto a) AFFNET_LAMBDA {
      constexpr int n = kCoprime ? (B * a + A * b) % N : B * a + b;
      part_re[a] = re[n], part_im[a] = im[n];
    });
    dft<A>(part_re, part_im);
    unroll<A>([&](auto a) AFFNET_LAMBDA {
      if constexpr (!kCoprime) rotate<a * b, N>(part_re[a], part_im[a]);
      step_re[a * B + b] = part_re[a], step_im[a * B + b] = part_im[a];
    });
  });
  unroll<A>([&](auto a) AFFNET_LAMBDA {
    dft<B>(step_re + a * B, step_im + a * B);
    unroll<B>([&](auto b) AFFNET_LAMBDA {
      // Coprime: the k with k % A == a and k % B == b.
      constexpr int k = [](int ka, int kb) {
        if (!kCoprime) return ka + A * kb;
        int candidate = kb;
        while (candidate % A != ka) candidate += B;
        return candidate;
      }(a, b);
      re[k] = step_re[a * B + b], im[k] = step_im[a * B + b];
    });
  });
}

template <int N, typename V>
AFFNET_INLINE void dft(V* re, V* im) {
  if constexpr (N == 1) {
  } else if constexpr (N == 2) {
    const V a = re[0], b = im[0];
    re[0] = a + re[1], im[0] = b + im[1];
    re[1] = a - re[1], im[1] = b - im[1];
  } else if constexpr (N == 4) {
    const V a = re[0] + re[2], b = im[0] + im[2], c = re[0] - re[2], d = im[0] - im[2];
    const V e = re[1] + re[3], f = im[1] + im[3], g = re[1] - re[3], h = im[1] - im[3];
    re[0] = a + e, im[0] = b + f, re[2] = a - e, im[2] = b - f;
    re[1] = c + h, im[1] = d - g, re[3] = c - h, im[3] = d + g;
  } else if constexpr (first_factor(N) == N) {
    dft_odd_prime<N>(re, im);
  } else {
    dft_composite<first_factor(N), N / first_factor(N)>(re, im);
  }
}

template <typename T>
struct Signal {  // [n] complex vectors, real and imaginary parts apart
  Vec<T>* re;
  Vec<T>* im;
};

// One step of Stockham's autosorting transform. `length` is what remains to be transformed, `stride` what is done.
template <int R, typename T>
void stockham_step(Signal<T> in, Signal<T> out, int length, int stride, const T* twiddles) {
  const int parts = length / R;
  for (int p = 0; p < parts; ++p) {
    for (int q = 0; q < stride; ++q) {
      Vec<T> re[R], im[R];
      unroll<R>([&](auto r) AFFNET_LAMBDA {
        re[r] = in.re[q + stride * (p + parts * r)], im[r] = in.im[q + stride * (p + parts * r)];
      });
      dft<R>(re, im);
      unroll<R>([&](auto r) AFFNET_LAMBDA {
        if constexpr (r > 0) {
          const T c = twiddles[2 * (p * R + r)], s = twiddles[2 * (p * R + r) + 1];
          const Vec<T> a = re[r], b = im[r];
          re[r] = a * c - b * s, im[r] = a * s + b * c;
        }
        out.re[q + stride * (R * p + r)] = re[r], out.im[q + stride * (R * p + r)] = im[r];
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
