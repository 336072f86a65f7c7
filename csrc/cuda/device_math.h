// Arithmetic that has an instruction of its own on the device; part of the device layer (device.h).
#pragma once

#include <cmath>

#include "../activations.h"
#include "device.h"

namespace affnet {

#ifdef __CUDACC__

// The larger of two numbers; a NaN if one of them is.
AFFNET_DEVICE float larger(float a, float b) {
#if __CUDA_ARCH__ < 800
  return a > b || a != a ? a : b;
#else
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#endif
}

// 2^v and 1 / v to about two units of the last place; subnormal results are zero.
AFFNET_DEVICE float exp2_fast(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

AFFNET_DEVICE float reciprocal_fast(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

#else

inline float larger(float a, float b) { return a > b || a != a ? a : b; }
inline float exp2_fast(float v) { return std::exp2(v); }
inline float reciprocal_fast(float v) { return 1.f / v; }

#endif

// act(v). A NaN stays one. SiLU's sigmoid has an error of a few units of the last place: where exp(-v) overflows,
// v / (1 + exp(-v)) is zero.
template <Activation kActivation>
AFFNET_DEVICE float activate_fast(float v) {
  if constexpr (kActivation == Activation::kRelu) {
    return larger(v, 0.f);
  } else if constexpr (kActivation == Activation::kSilu) {
    return v * reciprocal_fast(1.f + exp2_fast(-1.4426950408889634f * v));
  } else {
    return activate<kActivation>(v);
  }
}

// soft_shrink(v, lambda) with the device's minimum and maximum, which drop a NaN: it stays in v.
AFFNET_DEVICE float shrink(float v, float lambda) { return v - fminf(fmaxf(v, -lambda), lambda); }

}  // namespace affnet
