// The activations of the mask and soft-shrink, with their derivatives, on host and device, free of torch. `T` is float,
// double, or a SIMD vector of them that has the same operators, `select`, `clamp`, `max_with_zero`, `exp_`, `erf_` and
// `tanh_`.
//
// To add an activation: a line in AFFNET_ACTIVATIONS and a branch in each of `activate` and `activate_with_derivative`.
// A missing branch does not compile.
#pragma once

#include <cmath>
#include <type_traits>

#include "host_device.h"

// X(name in Python, enumerator): the one list of the C++ and CUDA code, in the order of Python's.
#define AFFNET_ACTIVATIONS(X) \
  X("relu", kRelu) X("silu", kSilu) X("gelu", kGelu) X("tanh", kTanh) X("identity", kIdentity)

namespace affnet {

enum class Activation {
#define AFFNET_ENUMERATOR(name, enumerator) enumerator,
  AFFNET_ACTIVATIONS(AFFNET_ENUMERATOR)
#undef AFFNET_ENUMERATOR
};

// Calls f with the activation as a compile-time constant: decltype(a)::value of its argument a.
template <typename F>
AFFNET_HD auto with_activation(Activation activation, F&& f) {
  switch (activation) {
#define AFFNET_CASE(name, enumerator) \
  case Activation::enumerator:        \
    return f(std::integral_constant<Activation, Activation::enumerator>{});
    AFFNET_ACTIVATIONS(AFFNET_CASE)
#undef AFFNET_CASE
  }
  __builtin_unreachable();  // activation_named admits no other value
}

AFFNET_HD float select(bool condition, float a, float b) { return condition ? a : b; }
AFFNET_HD double select(bool condition, double a, double b) { return condition ? a : b; }
AFFNET_HD float exp_(float v) { return std::exp(v); }
AFFNET_HD double exp_(double v) { return std::exp(v); }
AFFNET_HD float erf_(float v) { return std::erf(v); }
AFFNET_HD double erf_(double v) { return std::erf(v); }
// v between -limit and limit; a NaN stays one.
AFFNET_HD float clamp(float v, float limit) { return v > limit ? limit : v < -limit ? -limit : v; }
AFFNET_HD double clamp(double v, double limit) { return v > limit ? limit : v < -limit ? -limit : v; }
AFFNET_HD float max_with_zero(float v) { return v < 0 ? 0 : v; }
AFFNET_HD double max_with_zero(double v) { return v < 0 ? 0 : v; }
AFFNET_HD float tanh_(float v) { return std::tanh(v); }
AFFNET_HD double tanh_(double v) { return std::tanh(v); }

template <Activation>
inline constexpr bool kNoSuchActivation = false;

// act(v). A NaN stays one.
template <Activation kActivation, typename T>
AFFNET_HD T activate(T v) {
  if constexpr (kActivation == Activation::kRelu) {
    return max_with_zero(v);
  } else if constexpr (kActivation == Activation::kSilu) {
    return v / (T(1) + exp_(-v));
  } else if constexpr (kActivation == Activation::kGelu) {
    return v * (T(0.5) + T(0.5) * erf_(v * T(0.70710678118654752440)));
  } else if constexpr (kActivation == Activation::kTanh) {
    return tanh_(v);
  } else if constexpr (kActivation == Activation::kIdentity) {
    return v;
  } else {
    static_assert(kNoSuchActivation<kActivation>, "activate: an activation without a branch here");
  }
}

template <typename T>
struct ValueAndDerivative {
  T value, derivative;
};

// act(v) and act'(v), which share most of their work.
template <Activation kActivation, typename T>
AFFNET_HD ValueAndDerivative<T> activate_with_derivative(T v) {
  if constexpr (kActivation == Activation::kRelu) {
    return {activate<kActivation>(v), select(v <= T(0), T(0), T(1))};
  } else if constexpr (kActivation == Activation::kSilu) {
    const T s = T(1) / (T(1) + exp_(-v)), value = v * s;
    return {value, s + (value - value * s)};
  } else if constexpr (kActivation == Activation::kGelu) {
    const T cdf = T(0.5) + T(0.5) * erf_(v * T(0.70710678118654752440));
    const T pdf = exp_(T(-0.5) * v * v) * T(0.39894228040143267794);
    return {v * cdf, cdf + v * pdf};
  } else if constexpr (kActivation == Activation::kTanh) {
    const T t = tanh_(v);
    return {t, T(1) - t * t};
  } else if constexpr (kActivation == Activation::kIdentity) {
    return {v, T(1)};
  } else {
    static_assert(kNoSuchActivation<kActivation>, "activate_with_derivative: an activation without a branch here");
  }
}

// d * act'(v).
template <Activation kActivation, typename T>
AFFNET_HD T activate_vjp(T d, T v) {
  return d * activate_with_derivative<kActivation>(v).derivative;
}

// v moved towards zero by lambda >= 0, and zero within it.
template <typename T, typename Scalar>
AFFNET_HD T soft_shrink(T v, Scalar lambda) {
  return v - clamp(v, lambda);
}

// d where soft_shrink lets v through, which includes a NaN.
template <typename T>
AFFNET_HD T soft_shrink_vjp(T d, T v, T lambda) {
  const T passes = select(v <= lambda, select(-v <= lambda, T(0), T(1)), T(1));
  return d * passes;
}

}  // namespace affnet
