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
inline constexpr int kTileOutputs = 8;  // of a channel contraction: 3 accumulators each, of 32 registers
#elif defined(__AVX2__)
inline constexpr int kVecBytes = 32;
inline constexpr int kTileOutputs = 4;  // of 16 registers
#else
inline constexpr int kVecBytes = 16;
inline constexpr int kTileOutputs = 4;
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
inline constexpr bool kHasHalves = true;
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
inline constexpr bool kHasHalves = false;
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

// exp(v) to 1 ulp or two; v is clamped to where the result is a normal number, and a NaN stays one.
template <typename T>
AFFNET_INLINE Vec<T> exp_(Vec<T> v) {
  using V = Vec<T>;
  constexpr bool kSingle = sizeof(T) == 4;
  constexpr T kLimit = kSingle ? T(87) : T(708);
  constexpr T kRound =
      kSingle ? T(12582912) : T(6755399441055744);  // 1.5 * 2^mantissa bits: adding it rounds to an int
  constexpr T kLn2High = kSingle ? T(0.693359375) : T(6.93147180369123816490e-01);
  constexpr T kLn2Low = kSingle ? T(-2.12194440054690583e-4) : T(1.90821492927058770002e-10);
  v = select(v > V(kLimit), V(kLimit), select(v < V(-kLimit), V(-kLimit), v));
  const V shifted = v * V(T(1.44269504088896340736)) + V(kRound);
  const V n = shifted - V(kRound);
  const V r = (v - n * V(kLn2High)) - n * V(kLn2Low);
  V p;
  if constexpr (kSingle) {  // minimax on [-ln2/2, ln2/2], relative error 3e-9
    p = polynomial(
        r, {1.0f, 1.0f, 4.999999345e-01f, 1.666652069e-01f, 4.166838742e-02f, 8.368710257e-03f, 1.381461121e-03f});
  } else {  // Taylor, relative error 4e-18
    p = polynomial(r, {1.0, 1.0, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
                       1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800});
  }
  using Bits = typename V::Bits;
  return V((typename V::Raw)((Bits)p.raw + ((Bits)shifted.raw << (kSingle ? 23 : 52))));
}

AFFNET_INLINE Vec<float> erf_(Vec<float> v) {
  using V = Vec<float>;
  const V size = select(v < V(0.0f), -v, v);
  const V square = v * v;
  // Both minimax: erf(v) / v in v * v on [0, 1], relative error 1e-9; log(erfc(v)) on [1, 4].
  const V near = v * polynomial(square, {1.128379166e+00f, -3.761262582e-01f, 1.128358514e-01f, -2.685381167e-02f,
                                         5.188327211e-03f, -8.010189519e-04f, 7.853847832e-05f});
  const V capped = select(size > V(4.0f), V(4.0f), size);
  const V far =
      V(1.0f) - exp_(polynomial(capped, {1.884677922e-04f, -1.129580312e+00f, -6.332163949e-01f, -1.084221027e-01f,
                                         2.521034233e-02f, -4.205285908e-03f, 4.414729186e-04f, -2.169763918e-05f}));
  return select(size > V(1.0f), select(v < V(0.0f), -far, far), near);
}

// Float64 is there for accuracy, not speed: the library's function, lane by lane.
AFFNET_INLINE Vec<double> erf_(Vec<double> v) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) v.raw[i] = __builtin_erf(v.raw[i]);
  return v;
}

template <typename T>
AFFNET_INLINE Vec<T> tanh_(Vec<T> v) {
  for (int i = 0; i < Vec<T>::kLanes; ++i)
    v.raw[i] = sizeof(T) == 4 ? __builtin_tanhf(v.raw[i]) : __builtin_tanh(v.raw[i]);
  return v;
}

}  // namespace affnet::AFFNET_CAPABILITY
