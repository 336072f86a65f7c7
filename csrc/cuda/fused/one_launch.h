// The path of one launch: which calls take it, and the launch. Nothing here waits for the device or allocates anything
// but the result, so every call can be captured in a graph.
#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>

#include <atomic>
#include <map>
#include <mutex>

#include "../../checks.h"
#include "../launch.h"
#include "../spectral_map_vjp.cuh"
#include "half_kernel.h"
#include "path.h"
#include "single.h"

namespace affnet {

inline std::atomic<bool> one_launch_wanted{true};

inline Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return Element::kFloat64;
    case at::kHalf:
      return Element::kFloat16;
    case at::kBFloat16:
      return Element::kBfloat16;
    default:
      return Element::kFloat32;
  }
}

// The way of a call. Remembered, because choosing takes longer than launching.
inline Path path_of(const Sizes& n, const at::Tensor& x, bool backward) {
  const auto* const device = at::cuda::getDeviceProperties(x.get_device());
  const PathFacts facts{.B = n.B,
                        .H = n.H,
                        .W = n.W,
                        .K = n.K,
                        .D = n.D,
                        .Dh = n.Dh,
                        .element = element_of(x.scalar_type()),
                        .capability = 10 * device->major + device->minor,
                        .backward = backward,
                        .allowed = one_launch_wanted};
  constexpr size_t kMost = 4096;
  static auto* const mutex = new std::mutex;
  static auto* const known = new std::map<PathFacts, Path>;
  const std::lock_guard lock(*mutex);
  if (known->size() >= kMost) known->clear();
  const auto [found, added] = known->try_emplace(facts);
  if (added) found->second = choose_path(facts);
  return found->second;
}

// The largest power of two, up to 16, that divides both addresses.
inline int64_t alignment_of(const void* a, const void* b) {
  constexpr uintptr_t kMost = 16;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | kMost;
  return static_cast<int64_t>(bits & -bits);
}

// The transforms' constants on a device, asked for once.
inline const uint32_t* known_dft_table(int device) {
  static auto* const mutex = new std::mutex;
  static auto* const known = new std::map<int, const uint32_t*>;
  const std::lock_guard lock(*mutex);
  const uint32_t*& table = (*known)[device];
  if (table == nullptr) table = dft_table();
  return table;
}

// What both kinds of arguments have in common.
template <typename Arguments>
void set_parameters(Arguments& a, const Parameters& p, double threshold, Activation activation) {
  a.w1 = p.w1.const_data_ptr<float>(), a.b1 = p.b1.const_data_ptr<float>();
  a.w2 = p.w2.const_data_ptr<float>(), a.b2 = p.b2.const_data_ptr<float>();
  a.threshold = static_cast<float>(threshold), a.activation = activation;
}

inline SingleArguments single_arguments(const Sizes& n, const at::Tensor& x, const Parameters& p, double threshold,
                                        Activation activation, const SinglePlan& plan) {
  SingleArguments a{};
  set_parameters(a, p, threshold, activation);
  a.x = x.const_data_ptr(), a.element = element_of(x.scalar_type());
  a.B = n.B, a.ctas_per_block = plan.ctas_per_block;
  a.K = static_cast<int>(n.K), a.D = static_cast<int>(n.D), a.H = static_cast<int>(n.H), a.W = static_cast<int>(n.W);
  a.images = plan.images, a.strides = plan.strides;
  return a;
}

// A view of x that is aligned to less than 16 bytes has a plan of its own; if there is none, it is copied.
inline void launch_half(const at::Tensor& x, const at::Tensor& y, HalfArguments a, const Path& path) {
  HalfFacts facts = path.half_facts;
  HalfPlan plan = path.half;
  facts.alignment = alignment_of(x.const_data_ptr(), y.const_data_ptr());
  if (facts.alignment != path.half_facts.alignment) plan = plan_half(facts);
  if (plan.tiles == 0) return launch_half(x.clone(), y, a, path);
  a.x = static_cast<const uint16_t*>(x.const_data_ptr()), a.y = static_cast<uint16_t*>(y.data_ptr());
  set_half_shape(a, facts, plan, known_dft_table(x.get_device()));
  launch(half_kernel(plan), plan.ctas, plan.threads, plan.shared_bytes, at::cuda::getCurrentCUDAStream(), a);
}

inline at::Tensor one_launch_forward(const Sizes& n,
                                     const at::Tensor& x,  // [B, C, H, W]
                                     const Parameters& parameters, double threshold, Activation activation,
                                     const Path& path) {
  const at::Tensor from = x.contiguous();
  const Parameters p = parameters.contiguous();
  at::Tensor y = at::empty_like(from);
  if (computes_in_half(element_of(from.scalar_type()), false)) {
    HalfArguments a{};
    set_parameters(a, p, threshold, activation);
    launch_half(from, y, a, path);
  } else {
    const SinglePlan& plan = path.single;
    SingleArguments a = single_arguments(n, from, p, threshold, activation, plan);
    a.y = y.data_ptr();
    launch(single_kernel(plan), plan.grid(n.K), plan.threads, plan.shared_bytes, at::cuda::getCurrentCUDAStream(), a);
  }
  return y.contiguous(memory_format_of(x));
}

// One launch, and one that adds the partial sums of its CTAs in a fixed order.
inline Gradients one_launch_backward(const Sizes& n,
                                     const at::Tensor& dy,  // [B, C, H, W]
                                     const at::Tensor& x,   // [B, C, H, W]
                                     const Parameters& parameters, double threshold, Activation activation,
                                     bool input_grad, bool parameter_grads, const Path& path) {
  const SinglePlan& plan = path.single;
  const at::Tensor from = x.contiguous(), of = dy.contiguous();
  const Parameters p = parameters.contiguous();
  const auto stream = at::cuda::getCurrentCUDAStream();
  at::Tensor dx = input_grad ? at::empty_like(from) : at::empty({0}, x.options());
  const int64_t numbers = n.K * partial_size(static_cast<int>(n.D), static_cast<int>(n.Dh));
  const at::Tensor partials = at::empty({parameter_grads ? plan.ctas_per_block * numbers : 0}, p.w1.options());
  SingleVjpArguments a{};
  a.call = single_arguments(n, from, p, threshold, activation, plan);
  a.call.y = input_grad ? dx.data_ptr() : nullptr;
  a.dy = of.const_data_ptr();
  a.partials = parameter_grads ? partials.data_ptr<float>() : nullptr;
  a.input_grad = input_grad;
  launch(single_backward_kernel(plan), plan.grid(n.K), plan.threads, plan.shared_bytes, stream, a);
  const auto gradient = [&](const at::Tensor& of_parameter) {
    return parameter_grads ? at::empty_like(of_parameter) : at::empty({0}, of_parameter.options());
  };
  at::Tensor dw1 = gradient(p.w1), db1 = gradient(p.b1), dw2 = gradient(p.w2), db2 = gradient(p.b2);
  if (parameter_grads) {
    launch(reduce_kernel<float>, (numbers + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0, stream,
           partials.const_data_ptr<float>(), plan.ctas_per_block, static_cast<int>(n.K), static_cast<int>(n.D),
           static_cast<int>(n.Dh), dw1.data_ptr<float>(), db1.data_ptr<float>(), dw2.data_ptr<float>(),
           db2.data_ptr<float>());
  }
  if (input_grad) dx = dx.contiguous(memory_format_of(x));
  return {dx, dw1, db1, dw2, db2};
}

}  // namespace affnet
