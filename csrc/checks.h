// The arguments of the operators, and the checks that keep the kernels inside their tensors. Python validates the rest.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <tuple>

#include "activations.h"

namespace affnet {

// The mask's two complex layers; index 0 of the first axis is the real part, 1 the imaginary.
struct Parameters {
  at::Tensor w1;  // [2, K, D, Dh]
  at::Tensor b1;  // [2, K, Dh]
  at::Tensor w2;  // [2, K, Dh, D]
  at::Tensor b2;  // [2, K, D]

  Parameters contiguous() const { return {w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous()}; }
};

// dx, dw1, db1, dw2, db2; a group that was not asked for has shape [0].
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct Sizes {
  int64_t B, C, H, W, K, D, Dh;
};

// The sizes of a call whose tensors have matching shapes, types and devices; anything else raises.
inline Sizes check_sizes(const char* function,
                         const at::Tensor& x,  // [B, C, H, W]
                         const Parameters& parameters) {
  const auto& [w1, b1, w2, b2] = parameters;
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() > 0, function, ": expected x [B, C, H, W] with elements, got ",
                    x.sizes());
  TORCH_CHECK_VALUE(w1.dim() == 4 && w1.size(0) == 2, function, ": expected w1 [2, K, D, Dh], got ", w1.sizes());
  const Sizes n{x.size(0), x.size(1), x.size(2), x.size(3), w1.size(1), w1.size(2), w1.size(3)};
  TORCH_CHECK_VALUE(n.C == n.K * n.D && n.Dh > 0, function, ": expected x with ", n.K * n.D, " channels for w1 ",
                    w1.sizes(), ", got ", n.C);
  const auto check = [&](const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(tensor.sizes() == shape, function, ": expected ", name, " ", shape, " for w1 ", w1.sizes(),
                      ", got ", tensor.sizes());
  };
  check("b1", b1, {2, n.K, n.Dh});
  check("w2", w2, {2, n.K, n.Dh, n.D});
  check("b2", b2, {2, n.K, n.D});
  const at::ScalarType expected = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (const at::Tensor* parameter : {&w1, &b1, &w2, &b2}) {
    TORCH_CHECK_TYPE(parameter->scalar_type() == expected, function, ": expected parameters of ", expected,
                     " for x of ", x.scalar_type(), ", got ", parameter->scalar_type());
    TORCH_CHECK_VALUE(parameter->device() == x.device(), function, ": expected parameters on ", x.device(), ", got ",
                      parameter->device());
  }
  return n;
}

// The format that x has, contiguous or channels-last, and that y and dx are given.
inline at::MemoryFormat memory_format_of(const at::Tensor& x) {
  return x.is_contiguous() ? at::MemoryFormat::Contiguous : x.suggest_memory_format();
}

inline void check_dy(const char* function, const at::Tensor& dy, const at::Tensor& x) {
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes() && dy.device() == x.device(), function, ": expected dy ", x.sizes(), " on ",
                    x.device(), ", got ", dy.sizes(), " on ", dy.device());
  TORCH_CHECK_TYPE(dy.scalar_type() == x.scalar_type(), function, ": expected dy of x's dtype ", x.scalar_type(),
                   ", got ", dy.scalar_type());
}

inline Activation activation_named(const char* function, c10::string_view name) {
#define AFFNET_MATCH(known, enumerator) \
  if (name == known) return Activation::enumerator;
  AFFNET_ACTIVATIONS(AFFNET_MATCH)
#undef AFFNET_MATCH
#define AFFNET_NAME(known, enumerator) " " known
  TORCH_CHECK_VALUE(false, function, ": expected activation to be one of" AFFNET_ACTIVATIONS(AFFNET_NAME), ", got ",
                    std::string(name));
#undef AFFNET_NAME
}

}  // namespace affnet
