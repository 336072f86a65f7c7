// Discrete Fourier transforms (DFTs) of short lengths as straight-line code. Every lane of the vectors is a transform
// of its own, so that no lanes are ever shuffled.
//
// All transforms are forward and unnormalised, with inputs and outputs in natural order. Exchanging the real and
// imaginary parts of both the inputs and the outputs makes the inverse of them.
#pragma once

#include "simd/vec.h"

namespace affnet::AFFNET_CAPABILITY {

constexpr double kPi = 3.14159265358979323846;

// cos(2 pi k / n) at compile time: the angle is reduced to [0, pi / 4], then a Taylor series is summed.
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

// a - b as a fused multiply-add. Zen cores add and multiply in different pipes, and a transform is mostly additions;
// this moves its subtractions to the idle pipes. `one` must be opaque to the compiler, which would drop the product.
template <typename V>
AFFNET_INLINE V minus(V a, V b, [[maybe_unused]] V one) {
#if defined(__FMA__)
  return a - b * one;
#else
  return a - b;
#endif
}

constexpr int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// The factor A by which a transform of length n = A * B is split: for a power of two, 2, 4 or 8; otherwise the largest
// power of two in n if n is even, and the smallest prime factor if it is odd.
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

// Element i of the order 0, n / 2 (if n is even), 1, n - 1, 2, n - 2, ..., in which k and n - k are neighbours.
constexpr int paired(int i, int n) {
  if (i == 0) return 0;
  if (n % 2 == 0 && i == 1) return n / 2;
  if (n % 2 == 0) --i;
  return i % 2 == 1 ? (i + 1) / 2 : n - i / 2;
}

// The index maps of a transform of length A * B: B transforms of length A over the inputs n(a, b), then A transforms of
// length B to the outputs k(a, b). Coprime factors need no twiddles in between (Good-Thomas), others do (Cooley-Tukey).
template <int A, int B>
struct Split {
  static constexpr bool kCoprime = greatest_common_divisor(A, B) == 1;
  static constexpr int n(int a, int b) { return kCoprime ? (B * a + A * b) % (A * B) : B * a + b; }
  static constexpr int k(int a, int b) {
    if (!kCoprime) return a + A * b;
    int candidate = b;
    while (candidate % A != a) candidate += B;
    return candidate;
  }
};

// The order in which dft<N> produces its outputs: output k is number rank[k].
template <int N>
struct Order {
  int rank[N];
  constexpr Order() : rank{} {
    constexpr int A = first_factor(N), B = N / A;
    for (int i = 0; i < A; ++i) {
      if constexpr (N == 4 || B == 1) {
        rank[i] = i;
      } else {
        const Order<B> inner;
        for (int b = 0; b < B; ++b) rank[Split<A, B>::k(paired(i, A), b)] = i * B + inner.rank[b];
      }
    }
    for (int i = 0; (N == 4 || B == 1) && i < N; ++i) rank[paired(i, N)] = i;
  }
};

// A transform of N vectors: in(n, re, im) sets input n, out(k, re, im) receives output k. Inputs are requested when
// they are needed and outputs are delivered as soon as they are known, with k and N - k close to each other. Few values
// then have to be kept for later, which matters because the longer transforms do not fit into the registers.
template <int N, typename V, typename In, typename Out>
AFFNET_INLINE void dft(V one, In&& in, Out&& out);

// An odd prime length, by cosine sums over x[n] + x[N - n] and sine sums over x[n] - x[N - n].
template <int N, typename V, typename In, typename Out>
AFFNET_INLINE void dft_odd_prime(V one, In&& in, Out&& out) {
  using T = typename V::Scalar;
  constexpr int kHalf = (N - 1) / 2;
  V sum_re[kHalf], sum_im[kHalf], difference_re[kHalf], difference_im[kHalf];
  V first_re, first_im;
  in(std::integral_constant<int, 0>{}, first_re, first_im);
  V all_re = first_re, all_im = first_im;
  unroll<kHalf>([&](auto i) AFFNET_LAMBDA {
    V re, im, mirror_re, mirror_im;
    in(std::integral_constant<int, i + 1>{}, re, im);
    in(std::integral_constant<int, N - 1 - i>{}, mirror_re, mirror_im);
    sum_re[i] = re + mirror_re, sum_im[i] = im + mirror_im;
    difference_re[i] = minus(re, mirror_re, one), difference_im[i] = minus(im, mirror_im, one);
    all_re += sum_re[i], all_im += sum_im[i];
  });
  out(std::integral_constant<int, 0>{}, all_re, all_im);
  unroll<kHalf>([&](auto j) AFFNET_LAMBDA {
    constexpr int k = j + 1;
    V even_re = first_re, even_im = first_im, odd_re, odd_im;
    unroll<kHalf>([&](auto i) AFFNET_LAMBDA {
      constexpr T c = T(cos_turn(k * (i + 1), N)), s = T(sin_turn(k * (i + 1), N));
      even_re = even_re + sum_re[i] * c, even_im = even_im + sum_im[i] * c;
      odd_re = i == 0 ? difference_re[i] * s : odd_re + difference_re[i] * s;
      odd_im = i == 0 ? difference_im[i] * s : odd_im + difference_im[i] * s;
    });
    out(std::integral_constant<int, k>{}, even_re + odd_im, even_im - odd_re);
    out(std::integral_constant<int, N - k>{}, even_re - odd_im, even_im + odd_re);
  });
}

template <int A, int B, typename V, typename In, typename Out>
AFFNET_INLINE void dft_composite(V one, In&& in, Out&& out) {
  using S = Split<A, B>;
  V step_re[A][B], step_im[A][B];
  unroll<B>([&](auto i) AFFNET_LAMBDA {
    constexpr int b = paired(i, B);
    dft<A>(
        one, [&](auto a, V& re, V& im) AFFNET_LAMBDA { in(std::integral_constant<int, S::n(a, b)>{}, re, im); },
        [&](auto a, V re, V im) AFFNET_LAMBDA {
          if constexpr (!S::kCoprime) rotate<a * b, A * B>(re, im);
          step_re[a][b] = re, step_im[a][b] = im;
        });
  });
  unroll<A>([&](auto i) AFFNET_LAMBDA {
    constexpr int a = paired(i, A);
    dft<B>(
        one, [&](auto b, V& re, V& im) AFFNET_LAMBDA { re = step_re[a][b], im = step_im[a][b]; },
        [&](auto b, V re, V im) AFFNET_LAMBDA { out(std::integral_constant<int, S::k(a, b)>{}, re, im); });
  });
}

template <int N, typename V, typename In, typename Out>
AFFNET_INLINE void dft(V one, In&& in, Out&& out) {
  constexpr std::integral_constant<int, 0> k0;
  constexpr std::integral_constant<int, 1> k1;
  constexpr std::integral_constant<int, 2> k2;
  constexpr std::integral_constant<int, 3> k3;
  V re[4], im[4];
  if constexpr (N == 1) {
    in(k0, re[0], im[0]);
    out(k0, re[0], im[0]);
  } else if constexpr (N == 2) {
    in(k0, re[0], im[0]), in(k1, re[1], im[1]);
    out(k0, re[0] + re[1], im[0] + im[1]);
    out(k1, minus(re[0], re[1], one), minus(im[0], im[1], one));
  } else if constexpr (N == 4) {
    in(k0, re[0], im[0]), in(k2, re[2], im[2]);
    const V a = re[0] + re[2], b = im[0] + im[2], c = minus(re[0], re[2], one), d = minus(im[0], im[2], one);
    in(k1, re[1], im[1]), in(k3, re[3], im[3]);
    const V e = re[1] + re[3], f = im[1] + im[3], g = minus(re[1], re[3], one), h = minus(im[1], im[3], one);
    out(k0, a + e, b + f), out(k2, minus(a, e, one), minus(b, f, one));
    out(k1, c + h, minus(d, g, one)), out(k3, minus(c, h, one), d + g);
  } else if constexpr (first_factor(N) == N) {
    dft_odd_prime<N>(one, in, out);
  } else {
    dft_composite<first_factor(N), N / first_factor(N)>(one, in, out);
  }
}

}  // namespace affnet::AFFNET_CAPABILITY
