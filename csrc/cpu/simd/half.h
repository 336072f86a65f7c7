// Conversions between vectors of float and float16 or bfloat16 in memory: by the instructions for them where the target
// has these, else by integer arithmetic.
#pragma once

#include "simd/vec.h"

namespace affnet::AFFNET_CAPABILITY {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// As many 16-bit or 32-bit integers as Vec<float> has lanes.
typedef uint16_t Halves __attribute__((vector_size(kVecBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVecBytes)));

AFFNET_INLINE Halves load_16_bits(const void* p, int count) {
#if defined(__AVX512F__)
  return (Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
#else
  typedef Halves Unaligned __attribute__((aligned(2), may_alias));
  if (count == Vec<float>::kLanes) return *static_cast<const Unaligned*>(p);
  Halves v{};
  for (int i = 0; i < count; ++i) v[i] = static_cast<const Float16*>(p)[i].bits;
  return v;
#endif
}

AFFNET_INLINE void store_16_bits(Halves v, void* p, int count) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), (__m256i)v);
#else
  typedef Halves Unaligned __attribute__((aligned(2), may_alias));
  if (count == Vec<float>::kLanes) {
    *static_cast<Unaligned*>(p) = v;
  } else {
    for (int i = 0; i < count; ++i) static_cast<Float16*>(p)[i].bits = v[i];
  }
#endif
}

AFFNET_INLINE Vec<float> widen(Halves v, Float16) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_cvtph_ps((__m256i)v));
#elif defined(__F16C__)
  return Vec<float>(_mm256_cvtph_ps((__m128i)v));
#else
  using Raw = Vec<float>::Raw;
  const Words words = __builtin_convertvector(v, Words), sign = (words & 0x8000u) << 16, rest = (words & 0x7fffu) << 13;
  const Vec<float> finite = Vec<float>((Raw)rest) * 0x1p112f;  // the difference of the exponents' biases
  const Words bits = (words & 0x7c00u) == 0x7c00u ? rest | 0x7f800000u : (Words)finite.raw;
  return Vec<float>((Raw)(bits | sign));
#endif
}

AFFNET_INLINE Halves narrow(Vec<float> v, Float16) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Halves)_mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  using Raw = Vec<float>::Raw;
  const Words sign = (Words)v.raw & 0x80000000u, size = (Words)v.raw ^ sign;
  // Subnormal results: adding 0.5 leaves them, rounded, in the last bits. Normal ones are rounded as integers.
  const Words subnormal = (Words)((Raw)size + 0.5f) - 0x3f000000u;
  const Words normal = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
  const Words large = size > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
  const Words half = size >= 0x47800000u ? large : size < 0x38800000u ? subnormal : normal;
  return __builtin_convertvector(half | (sign >> 16), Halves);
#endif
}

AFFNET_INLINE Vec<float> widen(Halves v, BFloat16) {
  return Vec<float>((Vec<float>::Raw)(__builtin_convertvector(v, Words) << 16));
}

AFFNET_INLINE Halves narrow(Vec<float> v, BFloat16) {
  const Words bits = (Words)v.raw, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words nan = Words{} + 0x7fc0u;
  return __builtin_convertvector(v.raw != v.raw ? nan : rounded, Halves);
}

// The first `count` elements at p, of any type, as T; the other lanes are zero.
template <typename T, typename Element>
AFFNET_INLINE Vec<T> load_as(const Element* p, int count) {
  if constexpr (std::is_same_v<T, Element>) {
    return load_first(p, count);
  } else {
    return widen(load_16_bits(p, count), Element{});
  }
}

template <typename T, typename Element>
AFFNET_INLINE void store_as(Vec<T> v, Element* p, int count) {
  if constexpr (std::is_same_v<T, Element>) {
    store_first(v, p, count);
  } else {
    store_16_bits(narrow(v, Element{}), p, count);
  }
}

}  // namespace affnet::AFFNET_CAPABILITY
