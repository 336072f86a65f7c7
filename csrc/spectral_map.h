// The maths of the spectral map, host and device, free of torch: activations, soft-shrink, their derivatives, and the
// half-spectrum weight. `T` is float, double, or a SIMD vector of them that has the same operators and `select`.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define AFFNET_HD __host__ __device__ __forceinline__
#else
#define AFFNET_HD inline __attribute__((always_inline))
#endif

namespace affnet {

enum class Activation { kRelu, kSilu, kGelu, kIdentity };

// How often column w of the half spectrum stands in the full one: once for DC and Nyquist, else twice.
AFFNET_HD constexpr int hermitian_weight(int w, int width) { return w == 0 || 2 * w == width ? 1 : 2; }

AFFNET_HD float select(bool condition, float a, float b) { return condition ? a : b; }
AFFNET_HD double select(bool condition, double a, double b) { return condition ? a : b; }
AFFNET_HD float exp_(float v) { return std::exp(v); }
AFFNET_HD double exp_(double v) { return std::exp(v); }
AFFNET_HD float erf_(float v) { return std::erf(v); }
AFFNET_HD double erf_(double v) { return std::erf(v); }

// act(v). A NaN stays one: the comparison keeps v unless it is known to be negative.
template <Activation kActivation, typename T>
AFFNET_HD T activate(T v) {
  if constexpr (kActivation == Activation::kRelu) {
    return select(v < T(0), T(0), v);
  } else if constexpr (kActivation == Activation::kSilu) {
    return v / (T(1) + exp_(-v));
  } else if constexpr (kActivation == Activation::kGelu) {
    return T(0.5) * v * (T(1) + erf_(v * T(0.70710678118654752440)));
  } else {
    return v;
  }
}

// d * act'(v).
template <Activation kActivation, typename T>
AFFNET_HD T activate_vjp(T d, T v) {
  if constexpr (kActivation == Activation::kRelu) {
    return d * select(v <= T(0), T(0), T(1));
  } else if constexpr (kActivation == Activation::kSilu) {
    const T s = T(1) / (T(1) + exp_(-v));
    return d * (s * (T(1) + v * (T(1) - s)));
  } else if constexpr (kActivation == Activation::kGelu) {
    const T cdf = T(0.5) * (T(1) + erf_(v * T(0.70710678118654752440)));
    const T pdf = exp_(T(-0.5) * v * v) * T(0.39894228040143267794);
    return d * (cdf + v * pdf);
  } else {
    return d;
  }
}

// v moved towards zero by lambda, and zero within it: v - clamp(v, -lambda, lambda).
template <typename T>
AFFNET_HD T soft_shrink(T v, T lambda) {
  const T capped = select(v > lambda, lambda, v);
  return v - select(capped < -lambda, -lambda, capped);
}

// d where soft_shrink lets v through, which includes a NaN.
template <typename T>
AFFNET_HD T soft_shrink_vjp(T d, T v, T lambda) {
  const T passes = select(v <= lambda, select(-v <= lambda, T(0), T(1)), T(1));
  return d * passes;
}

}  // namespace affnet
