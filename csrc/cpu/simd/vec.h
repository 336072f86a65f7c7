// A SIMD vector of T, as wide as the instruction set that this file is compiled for, and its elementary functions.
//
// Everything lives in the namespace of one capability: the same text is compiled several times, and nothing compiled
// for a newer instruction set may be merged by the linker with code that an older machine runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "activations.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define AFFNET_INLINE inline __attribute__((always_inline))
#define AFFNET_LAMBDA __attribute__((always_inline))

namespace affnet::AFFNET_CAPABILITY {

#if defined(__AVX512F__)
inline constexpr int kVecBytes = 64;
inline constexpr int kChunkOutputs = 8;  // of a contraction: 3 accumulators each, of 32 registers
#elif defined(__AVX2__)
inline constexpr int kVecBytes = 32;
inline constexpr int kChunkOutputs = 4;  // of 16 registers
#else
inline constexpr int kVecBytes = 16;
inline constexpr int kChunkOutputs = 4;
#endif

constexpr ptrdiff_t round_up(ptrdiff_t value, ptrdiff_t to) { return (value + to - 1) / to * to; }

// f(0), f(1), ... f(N - 1) with compile-time arguments.
template <int N, typename F>
AFFNET_INLINE void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      AFFNET_LAMBDA { (f(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Raw __attribute__((vector_size(kVecBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVecBytes)));
};
template <>
struct Lanes<double> {
  typedef double Raw __attribute__((vector_size(kVecBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVecBytes)));
};

template <typename T>
struct Mask;

template <typename T>
struct Vec {
  static constexpr int kLanes = kVecBytes / sizeof(T);
  using Scalar = T;
  using Raw = typename Lanes<T>::Raw;
  using Bits = typename Lanes<T>::Bits;

  Raw raw;

  Vec() = default;
  AFFNET_INLINE Vec(Raw r) : raw(r) {}
  AFFNET_INLINE explicit Vec(T value) {
    [&]<int... I>(std::integer_sequence<int, I...>)
        AFFNET_LAMBDA { raw = Raw{((void)I, value)...}; }(std::make_integer_sequence<int, kLanes>{});
  }

  // Through an unaligned vector type, not memcpy: GCC takes arrays that are filled by memcpy through the stack.
  typedef Raw Unaligned __attribute__((aligned(alignof(T)), may_alias));
  static AFFNET_INLINE Vec load(const T* p) { return Vec(Raw(*reinterpret_cast<const Unaligned*>(p))); }
  AFFNET_INLINE void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = raw; }

  friend AFFNET_INLINE Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
  friend AFFNET_INLINE Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
  friend AFFNET_INLINE Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
  friend AFFNET_INLINE Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
  friend AFFNET_INLINE Vec operator-(Vec a) { return -a.raw; }
  friend AFFNET_INLINE Vec operator*(Vec a, T b) { return a * Vec(b); }
  AFFNET_INLINE Vec& operator+=(Vec b) { return *this = *this + b; }
  friend AFFNET_INLINE Mask<T> operator<(Vec a, Vec b) { return {a.raw < b.raw}; }
  friend AFFNET_INLINE Mask<T> operator>(Vec a, Vec b) { return {a.raw > b.raw}; }
  friend AFFNET_INLINE Mask<T> operator<=(Vec a, Vec b) { return {a.raw <= b.raw}; }
  friend AFFNET_INLINE Mask<T> operator==(Vec a, Vec b) { return {a.raw == b.raw}; }
};

template <typename T>
struct Mask {
  typename Vec<T>::Bits bits;
};

template <typename T>
AFFNET_INLINE Vec<T> select(Mask<T> mask, Vec<T> a, Vec<T> b) {
  return Vec<T>(mask.bits ? a.raw : b.raw);
}

// v, which the compiler may not load anew wherever it is used.
template <typename T>
AFFNET_INLINE Vec<T> pinned(Vec<T> v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v.raw));
#endif
  return v;
}

// The first `count` <= kLanes elements at p; the other lanes are zero.
template <typename T>
AFFNET_INLINE Vec<T> load_first(const T* p, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
  } else {
    return Vec<T>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p));
  }
#else
  if (count == Vec<T>::kLanes) return Vec<T>::load(p);
  T lanes[Vec<T>::kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return Vec<T>::load(lanes);
#endif
}

template <typename T>
AFFNET_INLINE void store_first(Vec<T> v, T* p, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v.raw);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), v.raw);
  }
#else
  if (count == Vec<T>::kLanes) return v.store(p);
  T lanes[Vec<T>::kLanes];
  v.store(lanes);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
#endif
}

// The same in each half of the lanes, from and to p and q; only where masks are cheap.
#if defined(__AVX512F__)
inline constexpr bool kHasHalves = true, kHasMasks = true;
template <typename T>
AFFNET_INLINE Vec<T> load_halves(const T* p, const T* q, int count) {
  const unsigned mask = (1u << count) - 1;
  constexpr int kHalf = Vec<T>::kLanes / 2;
  if constexpr (sizeof(T) == 4) {
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
    return Vec<T>(_mm512_mask_loadu_ps(low, static_cast<__mmask16>(mask << kHalf), q - kHalf));
  } else {
    const __m512d low = _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
    return Vec<T>(_mm512_mask_loadu_pd(low, static_cast<__mmask8>(mask << kHalf), q - kHalf));
  }
}
template <typename T>
AFFNET_INLINE void store_halves(Vec<T> v, T* p, T* q, int count) {
  const unsigned mask = (1u << count) - 1;
  constexpr int kHalf = Vec<T>::kLanes / 2;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), v.raw);
    _mm512_mask_storeu_ps(q - kHalf, static_cast<__mmask16>(mask << kHalf), v.raw);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), v.raw);
    _mm512_mask_storeu_pd(q - kHalf, static_cast<__mmask8>(mask << kHalf), v.raw);
  }
}
#else
inline constexpr bool kHasHalves = false, kHasMasks = false;
template <typename T>
AFFNET_INLINE Vec<T> load_halves(const T* p, const T*, int count) {
  return load_first(p, count);
}
template <typename T>
AFFNET_INLINE void store_halves(Vec<T> v, T* p, T*, int count) {
  store_first(v, p, count);
}
#endif

// The same for whole halves of 16 lanes.
#if defined(__AVX512F__)
AFFNET_INLINE Vec<float> load_halves(const float* p, const float* q) {
  return Vec<float>(_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(q), 1));
}
AFFNET_INLINE void store_low_half(Vec<float> v, float* p) { _mm256_storeu_ps(p, _mm512_castps512_ps256(v.raw)); }
AFFNET_INLINE void store_high_half(Vec<float> v, float* p) { _mm256_storeu_ps(p, _mm512_extractf32x8_ps(v.raw, 1)); }
#endif

template <typename T, int N>
AFFNET_INLINE Vec<T> polynomial(Vec<T> v, const T (&coefficients)[N]) {  // lowest degree first
  Vec<T> sum(coefficients[N - 1]);
  unroll<N - 1>([&](auto i) AFFNET_LAMBDA { sum = sum * v + Vec<T>(coefficients[N - 2 - i]); });
  return sum;
}

// v between -limit and limit; a NaN stays one.
template <typename T>
AFFNET_INLINE Vec<T> clamp(Vec<T> v, T limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {  // of a NaN and a number, both instructions return their second operand
    return Vec<T>(_mm512_min_ps(Vec<T>(limit).raw, _mm512_max_ps(Vec<T>(-limit).raw, v.raw)));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_min_ps(Vec<T>(limit).raw, _mm256_max_ps(Vec<T>(-limit).raw, v.raw)));
  }
#endif
  v = select(v > Vec<T>(limit), Vec<T>(limit), v);
  return select(v < Vec<T>(-limit), Vec<T>(-limit), v);
}

// 2^n * v, where n is an integer given by the low bits of `shifted` from bit kFraction upwards; neither it nor the
// result may leave the range of normal numbers.
template <int kFraction, typename T>
AFFNET_INLINE Vec<T> scale_by_power_of_two(Vec<T> v, Vec<T> shifted) {
  using Bits = typename Vec<T>::Bits;
  const Bits n = (Bits)shifted.raw >> kFraction;
  return Vec<T>((typename Vec<T>::Raw)((Bits)v.raw + (n << (sizeof(T) == 4 ? 23 : 52))));
}

// The larger of v and 0; a NaN stays one.
template <typename T>
AFFNET_INLINE Vec<T> max_with_zero(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm512_max_ps(_mm512_setzero_ps(), v.raw));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm256_max_ps(_mm256_setzero_ps(), v.raw));
#endif
  return select(v < Vec<T>(T(0)), Vec<T>(T(0)), v);
}

#if defined(__AVX512F__)
// 2^(i / 32)
alignas(64) inline constexpr float kRootsOfTwo[32] = {
    1.f,        1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
    1.1892071f, 1.2152474f, 1.2418578f, 1.269051f,  1.2968396f, 1.3252367f, 1.3542556f, 1.38391f,
    1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
    1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f,
};
#endif

// exp(v) with a relative error of at most 2e-7 + 2e-8 |v|; v is clamped to where the result is a normal number, and a
// NaN stays one. Adding 1.5 * 2^(23 - b) to a small number rounds it to a multiple of 2^-b, and the sum's lowest bits
// are that multiple. The polynomials are minimax.
AFFNET_INLINE Vec<float> exp_(Vec<float> v) {
  using V = Vec<float>;
  v = clamp(v, 87.0f);
  const V log2_e(1.44269504088896340736f);
#if defined(__AVX512F__)
  // exp(v) = 2^n * 2^f with n a multiple of 1/32, the power of whose fraction is looked up: SiLU takes 43 % less time
  // than with the plain polynomial (Zen 4).
  const V shifted(_mm512_fmadd_ps(v.raw, log2_e.raw, V(393216.0f).raw));
  const V f(_mm512_fmsub_ps(v.raw, log2_e.raw, (shifted - V(393216.0f)).raw));
  const V root(_mm512_permutex2var_ps(_mm512_load_ps(kRootsOfTwo), _mm512_castps_si512(shifted.raw),
                                      _mm512_load_ps(kRootsOfTwo + 16)));
  const V power = scale_by_power_of_two<5>(root, shifted);
  return power + power * (f * polynomial(f, {6.931573153e-01f, 2.402265966e-01f}));  // relative error 5e-8
#else
  const V shifted = v * log2_e + V(12582912.0f);
  const V n = shifted - V(12582912.0f);
  const V r = (v - n * V(0.693359375f)) - n * V(-2.12194440054690583e-4f);  // ln 2 in two parts
  const V power = polynomial(r, {1.0f, 1.0f, 4.999999345e-01f, 1.666652069e-01f, 4.166838742e-02f, 8.368710257e-03f,
                                 1.381461121e-03f});  // relative error 3e-9
  return scale_by_power_of_two<0>(power, shifted);
#endif
}

// The same to 1 ulp or two.
AFFNET_INLINE Vec<double> exp_(Vec<double> v) {
  using V = Vec<double>;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  v = clamp(v, 708.0);
  const V shifted = v * V(1.44269504088896340736) + V(kRound);
  const V n = shifted - V(kRound);
  const V r = (v - n * V(6.93147180369123816490e-01)) - n * V(1.90821492927058770002e-10);  // ln 2 in two parts
  const V power = polynomial(r, {1.0, 1.0, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320,
                                 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800});
  return scale_by_power_of_two<0>(power, shifted);  // Taylor, relative error 4e-18
}

// v * p(v^2) / q(v^2) between -limit and limit; beyond them, and never above it, the value 1 that it has there.
template <int P, int Q>
AFFNET_INLINE Vec<float> odd_sigmoid(Vec<float> v, float limit, const float (&p)[P], const float (&q)[Q]) {
  v = clamp(v, limit);
  const Vec<float> square = v * v;
  return clamp(v * polynomial(square, p) / polynomial(square, q), 1.0f);
}

// erf(v) with a relative error of at most 4e-7, of which the fit is 5e-8.
AFFNET_INLINE Vec<float> erf_(Vec<float> v) {
  return odd_sigmoid(v, 3.92f,
                     {1.128379107e+00f, 1.999222189e-01f, 5.057300627e-02f, 3.701500362e-03f, 1.418470783e-04f,
                      -1.957807171e-06f, 1.992403931e-08f},
                     {1.0f, 5.105081201e-01f, 1.149974465e-01f, 1.435299311e-02f, 9.560100152e-04f});
}

// tanh(v) with a relative error of at most 4e-7, of which the fit is 2e-8.
AFFNET_INLINE Vec<float> tanh_(Vec<float> v) {
  return odd_sigmoid(v, 9.0f, {1.0f, 1.338101476e-01f, 3.495574696e-03f, 2.060886436e-05f, 1.335436562e-08f},
                     {1.0f, 4.671432972e-01f, 2.587693185e-02f, 3.285612911e-04f, 7.776435495e-07f});
}

// Float64 is there for accuracy, not speed: the library's functions, lane by lane.
AFFNET_INLINE Vec<double> erf_(Vec<double> v) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) v.raw[i] = __builtin_erf(v.raw[i]);
  return v;
}

AFFNET_INLINE Vec<double> tanh_(Vec<double> v) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) v.raw[i] = __builtin_tanh(v.raw[i]);
  return v;
}

}  // namespace affnet::AFFNET_CAPABILITY
