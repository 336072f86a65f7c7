// Picks the backward kernel of an instance, in parts that compile beside each other.
#pragma once

#include "single_backward.cuh"

namespace affnet {

template <int kLeast, int kMost, size_t i>
void take_backward_if(SingleVjpKernel& found, int index) {
  constexpr SingleInstance kInstance = kSingleInstances[i];
  if constexpr (kInstance.H >= kLeast && kInstance.H <= kMost && has_backward(kInstance)) {
    if (index == static_cast<int>(i)) found = single_vjp_kernel<kInstance.H, kInstance.W, kInstance.quads>;
  }
}

template <int kLeast, int kMost, size_t... i>
SingleVjpKernel single_backward_between(int index, std::index_sequence<i...>) {
  SingleVjpKernel found = nullptr;
  (take_backward_if<kLeast, kMost, i>(found, index), ...);
  return found;
}

// The backward kernel of instance `index` if its H is from kLeast to kMost, else null; compiles only those.
template <int kLeast, int kMost>
SingleVjpKernel single_backward_between(int index) {
  return single_backward_between<kLeast, kMost>(index, std::make_index_sequence<std::size(kSingleInstances)>{});
}

}  // namespace affnet
