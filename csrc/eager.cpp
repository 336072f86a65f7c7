#include "eager.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "activations.h"

namespace affnet {
namespace {

bool is_activation(const std::string& name) {
#define AFFNET_MATCH(known, enumerator) \
  if (name == known) return true;
  AFFNET_ACTIVATIONS(AFFNET_MATCH)
#undef AFFNET_MATCH
  return false;
}

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The operators that Python registers; their bodies choose a backend.
at::Tensor mixer_forward(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2,
                         const at::Tensor& b2, double sparsity_threshold, const std::string& activation,
                         const std::optional<std::string>& backend) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                      const at::Scalar&, c10::string_view, std::optional<c10::string_view>,
                      const std::optional<at::Tensor>&)>("affnet_kernels::mixer_forward");
  return op.call(x, w1, b1, w2, b2, sparsity_threshold, activation, backend, std::nullopt);
}

Gradients mixer_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1,
                         const at::Tensor& w2, const at::Tensor& b2, double sparsity_threshold,
                         const std::string& activation, const std::optional<std::string>& backend, bool input_grad,
                         bool parameter_grads) {
  static const auto op =
      find<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                     const at::Tensor&, const at::Scalar&, c10::string_view, std::optional<c10::string_view>, bool,
                     bool, const std::optional<at::Tensor>&)>("affnet_kernels::mixer_backward");
  return op.call(dy, x, w1, b1, w2, b2, sparsity_threshold, activation, backend, input_grad, parameter_grads,
                 std::nullopt);
}

// Whether nothing but autograd, autocast (which the mixer ignores) and a backend would see a call of these tensors.
bool is_plain(std::initializer_list<const at::Tensor*> tensors) {
  using c10::DispatchKey;
  static const c10::DispatchKeySet ignored = c10::default_included_set | c10::autocast_dispatch_keyset;
  if (!(c10::impl::tls_local_dispatch_key_set().included_ - ignored).empty()) return false;
  static const c10::DispatchKeySet special({DispatchKey::Python, DispatchKey::PythonTLSSnapshot,
                                            DispatchKey::Functionalize, DispatchKey::FuncTorchBatched,
                                            DispatchKey::FuncTorchGradWrapper, DispatchKey::BatchedNestedTensor});
  for (const at::Tensor* tensor : tensors) {
    if (tensor->key_set().has_any(special) || tensor->_fw_grad(0).defined()) return false;
  }
  return true;
}

// Whether the kernels can take the arguments as they are: what `fused_aff_mixer` validates, without the words.
bool is_valid(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2,
              const at::Tensor& b2, double sparsity_threshold, const std::string& activation) {
  if (x.dim() != 4 || x.numel() == 0 || w1.dim() != 4 || w1.size(0) != 2 || w1.numel() == 0) return false;
  const int64_t K = w1.size(1), D = w1.size(2), Dh = w1.size(3);
  if (x.size(1) != K * D || b1.sizes() != at::IntArrayRef{2, K, Dh} || w2.sizes() != at::IntArrayRef{2, K, Dh, D} ||
      b2.sizes() != at::IntArrayRef{2, K, D}) {
    return false;
  }
  const at::ScalarType dtype = x.scalar_type(), computed = dtype == at::kDouble ? at::kDouble : at::kFloat;
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kHalf && dtype != at::kBFloat16) return false;
  for (const at::Tensor* parameter : {&w1, &b1, &w2, &b2}) {
    if (parameter->scalar_type() != computed || parameter->device() != x.device()) return false;
  }
  return sparsity_threshold >= 0 && is_activation(activation);
}

class Mixer : public torch::autograd::Function<Mixer> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w1,
                            const at::Tensor& b1, const at::Tensor& w2, const at::Tensor& b2, double sparsity_threshold,
                            const std::string& activation, const std::optional<std::string>& backend, bool native,
                            bool native_backward) {
    ctx->save_for_backward({x, w1, b1, w2, b2});
    ctx->saved_data["sparsity_threshold"] = sparsity_threshold;
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["backend"] = backend;
    ctx->saved_data["native"] = native_backward;
    const at::AutoDispatchBelowADInplaceOrView below;
    return native ? native_forward(x, w1, b1, w2, b2, sparsity_threshold, activation)
                  : mixer_forward(x, w1, b1, w2, b2, sparsity_threshold, activation, backend);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& cotangents) {
    const at::Tensor& dy = cotangents[0];
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w1 = saved[1], &b1 = saved[2], &w2 = saved[3], &b2 = saved[4];
    const double sparsity_threshold = ctx->saved_data["sparsity_threshold"].toDouble();
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const bool input_grad = ctx->needs_input_grad(0);
    const bool parameter_grads =
        ctx->needs_input_grad(1) || ctx->needs_input_grad(2) || ctx->needs_input_grad(3) || ctx->needs_input_grad(4);
    const auto backward_of = [&](bool native) {
      return native
                 ? native_backward(dy, x, w1, b1, w2, b2, sparsity_threshold, activation, input_grad, parameter_grads)
                 : mixer_backward(dy, x, w1, b1, w2, b2, sparsity_threshold, activation,
                                  ctx->saved_data["backend"].toOptional<std::string>(), input_grad, parameter_grads);
    };
    Gradients gradients;
    if (at::GradMode::is_enabled() || !is_plain({&dy, &x, &w1, &b1, &w2, &b2})) {
      gradients = backward_of(false);  // a second derivative or a transform needs the operator that has a derivative
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      gradients = backward_of(ctx->saved_data["native"].toBool());
    }
    const auto& [dx, dw1, db1, dw2, db2] = gradients;
    const auto if_needed = [&](size_t i, const at::Tensor& gradient) {
      return ctx->needs_input_grad(i) ? gradient : at::Tensor();
    };
    return {if_needed(0, dx),
            if_needed(1, dw1),
            if_needed(2, db1),
            if_needed(3, dw2),
            if_needed(4, db2),
            {},
            {},
            {},
            {},
            {}};
  }
};

}  // namespace

at::Tensor native_forward(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2,
                          const at::Tensor& b2, double sparsity_threshold, const std::string& activation) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                      double, c10::string_view)>("affnet_kernels::native_forward");
  return op.call(x, w1, b1, w2, b2, sparsity_threshold, activation);
}

Gradients native_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1,
                          const at::Tensor& w2, const at::Tensor& b2, double sparsity_threshold,
                          const std::string& activation, bool input_grad, bool parameter_grads) {
  static const auto op =
      find<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                     const at::Tensor&, double, c10::string_view, bool, bool)>("affnet_kernels::native_backward");
  return op.call(dy, x, w1, b1, w2, b2, sparsity_threshold, activation, input_grad, parameter_grads);
}

std::optional<at::Tensor> mixer_eager(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1,
                                      const at::Tensor& w2, const at::Tensor& b2, double sparsity_threshold,
                                      const std::string& activation, const std::optional<std::string>& backend,
                                      bool native, bool native_backward) {
  if (!is_plain({&x, &w1, &b1, &w2, &b2})) return std::nullopt;
  if (!is_valid(x, w1, b1, w2, b2, sparsity_threshold, activation)) return std::nullopt;
  const bool differentiable = at::GradMode::is_enabled() &&
                              !c10::impl::tls_local_dispatch_key_set().excluded_.has_any(c10::autograd_dispatch_keyset);
  if (differentiable) {
    return Mixer::apply(x, w1, b1, w2, b2, sparsity_threshold, activation, backend, native, native_backward);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return native ? native_forward(x, w1, b1, w2, b2, sparsity_threshold, activation)
                : mixer_forward(x, w1, b1, w2, b2, sparsity_threshold, activation, backend);
}

}  // namespace affnet
