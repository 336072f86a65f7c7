// How a discrete Fourier transform of some length is computed: plain data, free of any instruction set.
#pragma once

namespace affnet {

// The radices that have straight-line code, and the estimated cycles of a butterfly with its twiddles (AVX-512, Zen 4).
struct Codelet {
  int radix;
  double cycles;
};
inline constexpr Codelet kCodelets[] = {{2, 8}, {3, 15}, {4, 22}, {5, 32}, {7, 52}, {8, 56}, {11, 105}, {13, 140}};

// The lengths with straight-line code for whole transforms in float32: those of AFFNet's maps for images of 224, 256
// and 320 pixels.
inline constexpr int kStraightLengths[] = {7, 8, 10, 14, 16, 20, 28, 32};

inline constexpr int kMaxSteps = 32;

template <typename T>
struct FftPlan;

// One radix of Stockham's algorithm.
template <typename T>
struct FftStep {
  int radix;
  const T* twiddles;        // [length left / radix, radix] of (cos, sin)
  const FftPlan<T>* inner;  // transforms `radix` elements; null: the radix is a codelet
};

enum class FftMethod {
  kSteps,      // Stockham's autosorting algorithm, radix by radix
  kDirect,     // an odd prime length, by sums over a table of roots of unity
  kRader,      // a prime length p, by a circular convolution of length p - 1
  kBluestein,  // any length n, by a circular convolution of any length from 2 n - 1 up
};

template <typename T>
struct FftPlan {
  FftMethod method;
  int length;
  int work_length;  // vectors that a transform needs in each of its two buffers
  // kSteps
  int step_count;
  FftStep<T> steps[kMaxSteps];
  // kDirect: [half, half] of (cos, sin) with half = (length - 1) / 2, of output k + 1 and input i + 1 at (k, i)
  const T* roots;
  // kRader and kBluestein
  const FftPlan<T>* convolution;
  const T* kernel_spectrum;  // [convolution->length] of (re, im)
  const int* powers;         // kRader: [2, length - 1] powers of a generator g modulo p: g^i, then g^-i
  const T* chirp;            // kBluestein: [length] of (re, im)
};

// How one long signal is transformed so that its own elements fill the lanes: by Bailey's four-step algorithm, for a
// length of first * second where neither factor is smaller than the number of lanes.
template <typename T>
struct LongPlan {
  int length;
  int first, second;
  int pitch;             // of rows of the matrix [first, second] between the two transforms
  const int* rows;       // [first, rounded up to lanes] offset of its rows
  const T* twiddles[2];  // re, im [first, second]
  FftPlan<T> first_fft, second_fft;
  // Bluestein, if `length` is not first * second: re, im of the chirp [length] and of the kernel's spectrum; else null
  const T* chirp[2];
  const T* kernel_spectrum[2];
};

}  // namespace affnet
