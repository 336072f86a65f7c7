// Discrete Fourier transforms of one thread, in registers: X[k] = sum over n of x[n] exp(-2 pi i k n / N).
//
// Powers of two are radix-2 butterflies of at most six fused multiply-additions; 5 and 7 use the symmetry of real and
// imaginary parts; the others are two coprime factors (Good and Thomas), which need no twiddle factors. Additions and
// multiplications of the complex transform: 52 for 8, 148 for 16, 388 for 32; 32 and 60 for 5 and 7; 84, 148, 208, 352
// and 516 for 10, 14, 20, 28 and 40.
//
// Everything is unrolled by templates, so that every index is a constant and every array lives in registers; what only
// permutes costs nothing. The inverse transform is the same one with real and imaginary parts exchanged on both sides.
#pragma once

#include <utility>

#include "../mma.cuh"

namespace affnet {

namespace fft_registers {

// Cosine and sine of k / N turns, by their series; N up to some hundreds.
struct Turn {
  double cosine = 0, sine = 0;

  constexpr Turn(int k, int N) {
    k = (k % N + N) % N;
    const double x = 6.283185307179586476925 * (2 * k > N ? k - N : k) / N;
    double term = 1;
    for (int n = 1; n < 40; ++n) {
      (n % 2 == 1 ? cosine : sine) += term;
      term *= (n % 2 == 1 ? x : -x) / n;
    }
  }
};

constexpr double magnitude(double v) { return v < 0 ? -v : v; }

// The factor exp(-2 pi i k / N) as scale (1 - i tangent) or, nearer to the imaginary axis, scale (tangent - i), so that
// the tangent is at most 1.
template <int k, int N>
struct Twiddle {
  static constexpr Turn kTurn{k, N};
  static constexpr bool kSteep = magnitude(kTurn.sine) > magnitude(kTurn.cosine);
  static constexpr float kScale = static_cast<float>(kSteep ? kTurn.sine : kTurn.cosine);
  static constexpr float kTangent = static_cast<float>(kSteep ? kTurn.cosine / kTurn.sine : kTurn.sine / kTurn.cosine);
};

// (a, b) := (a + w b, a - w b) with w = exp(-2 pi i k / N).
template <int k, int N>
AFFNET_DEVICE void butterfly(Complex<float>& a, Complex<float>& b) {
  const Complex<float> p = a, q = b;
  if constexpr (k == 0) {
    a = {p.re + q.re, p.im + q.im}, b = {p.re - q.re, p.im - q.im};
  } else if constexpr (4 * k == N) {
    a = {p.re + q.im, p.im - q.re}, b = {p.re - q.im, p.im + q.re};
  } else {
    using W = Twiddle<k, N>;
    const float scale = W::kScale, tangent = W::kTangent;
    const float re = W::kSteep ? q.im + tangent * q.re : q.re + tangent * q.im;
    const float im = W::kSteep ? tangent * q.im - q.re : q.im - tangent * q.re;
    a = {p.re + scale * re, p.im + scale * im}, b = {p.re - scale * re, p.im - scale * im};
  }
}

AFFNET_HD constexpr int bit_reversed(int i, int N) {
  int reversed = 0;
  for (; N > 1; N /= 2, i /= 2) reversed = 2 * reversed + i % 2;
  return reversed;
}

template <int N, int... i>
AFFNET_DEVICE void reverse_bits(Complex<float> (&v)[N], std::integer_sequence<int, i...>) {
  const Complex<float> from[N] = {v[std::integral_constant<int, bit_reversed(i, N)>::value]...};
  ((v[i] = from[i]), ...);
}

// The butterflies that join transforms of L / 2 numbers to transforms of L.
template <int L, int N, int... i>
AFFNET_DEVICE void join(Complex<float> (&v)[N], std::integer_sequence<int, i...>) {
  constexpr int kHalf = L / 2;
  (butterfly<i % kHalf, L>(v[i / kHalf * L + i % kHalf], v[i / kHalf * L + i % kHalf + kHalf]), ...);
}

template <int L, int N>
AFFNET_DEVICE void join_from(Complex<float> (&v)[N]) {
  if constexpr (L <= N) {
    join<L>(v, std::make_integer_sequence<int, N / 2>{});
    join_from<2 * L>(v);
  }
}

// The factors of sum and difference j in output k of an odd N; all sines of an output relative to that of j = 1.
template <int j, int k, int N>
struct OddFactors {
  static constexpr double kFirst = Turn(k, N).sine;
  static constexpr float kScale = static_cast<float>(kFirst);
  static constexpr float kCosine = static_cast<float>(Turn(j * k, N).cosine);
  static constexpr float kSine = static_cast<float>(Turn(j * k, N).sine / kFirst);
};

template <int j, int k, int N>
AFFNET_DEVICE void add_odd(Complex<float>& even, Complex<float>& odd, const Complex<float>& sum,
                           const Complex<float>& difference) {
  const float cosine = OddFactors<j, k, N>::kCosine, sine = OddFactors<j, k, N>::kSine;
  even.re += cosine * sum.re, even.im += cosine * sum.im;
  if constexpr (j == 1) {
    odd = difference;
  } else {
    odd.re += sine * difference.re, odd.im += sine * difference.im;
  }
}

// Output k of an odd N, and output N - k, from the sums and differences of inputs j and N - j; j runs from 1.
template <int k, int N, int... i>
AFFNET_DEVICE void odd_outputs(Complex<float> (&v)[N], const Complex<float>& first, const Complex<float>* sum,
                               const Complex<float>* difference, std::integer_sequence<int, i...>) {
  const float scale = OddFactors<1, k, N>::kScale;
  Complex<float> even = first, odd;
  (add_odd<i + 1, k, N>(even, odd, sum[i], difference[i]), ...);
  v[k] = {even.re + scale * odd.im, even.im - scale * odd.re};
  v[N - k] = {even.re - scale * odd.im, even.im + scale * odd.re};
}

template <int N, int... i>
AFFNET_DEVICE void odd_transform(Complex<float> (&v)[N], std::integer_sequence<int, i...> half) {
  const Complex<float> first = v[0];
  const Complex<float> sum[N / 2] = {{v[i + 1].re + v[N - 1 - i].re, v[i + 1].im + v[N - 1 - i].im}...};
  const Complex<float> difference[N / 2] = {{v[i + 1].re - v[N - 1 - i].re, v[i + 1].im - v[N - 1 - i].im}...};
  ((v[0].re += sum[i].re), ...);
  ((v[0].im += sum[i].im), ...);
  (odd_outputs<i + 1, N>(v, first, sum, difference, half), ...);
}

// The number below A * B that leaves a when divided by A and b when divided by B.
AFFNET_HD constexpr int with_remainders(int a, int A, int b, int B) {
  int k = a;
  while (k % B != b) k += A;
  return k;
}

// The largest power of two that divides N.
AFFNET_HD constexpr int power_of_two_in(int N) { return N & -N; }

}  // namespace fft_registers

template <int N>
AFFNET_DEVICE void transform(Complex<float> (&v)[N]);

namespace fft_registers {

template <int A, int B, int b, int... a>
AFFNET_DEVICE void transform_column(const Complex<float> (&v)[A * B], Complex<float> (&to)[A * B],
                                    std::integer_sequence<int, a...>) {
  Complex<float> column[A] = {v[(B * a + A * b) % (A * B)]...};
  transform<A>(column);
  ((to[a * B + b] = column[a]), ...);
}

template <int A, int B, int a, int... b>
AFFNET_DEVICE void transform_row(const Complex<float> (&from)[A * B], Complex<float> (&v)[A * B],
                                 std::integer_sequence<int, b...>) {
  Complex<float> row[B] = {from[a * B + b]...};
  transform<B>(row);
  ((v[std::integral_constant<int, with_remainders(a, A, b, B)>::value] = row[b]), ...);
}

template <int A, int B, int... a, int... b>
AFFNET_DEVICE void coprime_transform(Complex<float> (&v)[A * B], std::integer_sequence<int, a...> columns,
                                     std::integer_sequence<int, b...> rows) {
  Complex<float> between[A * B];
  (transform_column<A, B, b>(v, between, columns), ...);
  (transform_row<A, B, a>(between, v, rows), ...);
}

}  // namespace fft_registers

// v := its transform, in natural order on both sides.
template <int N>
AFFNET_DEVICE void transform(Complex<float> (&v)[N]) {
  using namespace fft_registers;
  constexpr int kPower = power_of_two_in(N), kOdd = N / kPower;
  if constexpr (kOdd == 1) {
    reverse_bits(v, std::make_integer_sequence<int, N>{});
    join_from<2>(v);
  } else if constexpr (kPower == 1) {
    odd_transform(v, std::make_integer_sequence<int, N / 2>{});
  } else {
    coprime_transform<kPower, kOdd>(v, std::make_integer_sequence<int, kPower>{},
                                    std::make_integer_sequence<int, kOdd>{});
  }
}

}  // namespace affnet
