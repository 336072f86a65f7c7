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

inline at::Tensor one_launch_forward(const Sizes& n,
                                     const at::Tensor& x,  // [B, C, H, W]
                                     const Parameters& parameters, double threshold, Activation activation,
                                     const Path& path) {
  const at::Tensor from = x.contiguous();
  const Parameters p = parameters.contiguous();
  at::Tensor y = at::empty_like(from);
  const SinglePlan& plan = path.single;
  SingleArguments a{};
  a.x = from.const_data_ptr<float>(), a.y = y.data_ptr<float>();
  a.w1 = p.w1.const_data_ptr<float>(), a.b1 = p.b1.const_data_ptr<float>();
  a.w2 = p.w2.const_data_ptr<float>(), a.b2 = p.b2.const_data_ptr<float>();
  a.B = n.B, a.ctas_per_block = plan.ctas_per_block;
  a.K = static_cast<int>(n.K), a.D = static_cast<int>(n.D), a.H = static_cast<int>(n.H), a.W = static_cast<int>(n.W);
  a.images = plan.images, a.strides = plan.strides;
  a.threshold = static_cast<float>(threshold), a.activation = activation;
  launch(single_kernel(plan), plan.grid(n.K), plan.threads, plan.shared_bytes, at::cuda::getCurrentCUDAStream(), a);
  return y.contiguous(memory_format_of(x));
}

}  // namespace affnet
