// The mixer in eager mode: what autograd does for a call of plain tensors, in C++.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <tuple>

namespace affnet {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // dx, dw1, db1, dw2, db2

// y, differentiable; or nothing, without an error, where the call is not valid (Python says what is wrong) or something
// else must see the operator itself: a dispatch mode, a transform of torch.func, forward-mode differentiation, or a
// tensor subclass. `native` and `native_backward`: the backend chosen for that pass is one of this extension.
// `backend`: the one that the user named.
std::optional<at::Tensor> mixer_eager(const at::Tensor& x,   // [B, C, H, W]
                                      const at::Tensor& w1,  // [2, K, D, Dh]
                                      const at::Tensor& b1,  // [2, K, Dh]
                                      const at::Tensor& w2,  // [2, K, Dh, D]
                                      const at::Tensor& b2,  // [2, K, D]
                                      double sparsity_threshold, const std::string& activation,
                                      const std::optional<std::string>& backend, bool native, bool native_backward);

// The operators of this extension as plain functions: torch.ops matches its arguments against the schema at every call,
// which takes as long as the kernel on a small map.
at::Tensor native_forward(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2,
                          const at::Tensor& b2, double sparsity_threshold, const std::string& activation);
Gradients native_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1,
                          const at::Tensor& w2, const at::Tensor& b2, double sparsity_threshold,
                          const std::string& activation, bool input_grad, bool parameter_grads);

}  // namespace affnet
