// Picks the kernel of an instance, in parts that compile beside each other.
#pragma once

#include "single_forward.cuh"

namespace affnet {

template <int kLeast, int kMost, size_t i>
void take_if(SingleKernel& found, int index) {
  constexpr SingleInstance kInstance = kSingleInstances[i];
  if constexpr (kInstance.H >= kLeast && kInstance.H <= kMost) {
    if (index == static_cast<int>(i)) found = single_forward_kernel<kInstance.H, kInstance.W, kInstance.quads>;
  }
}

template <int kLeast, int kMost, size_t... i>
SingleKernel single_kernel_between(int index, std::index_sequence<i...>) {
  SingleKernel found = nullptr;
  (take_if<kLeast, kMost, i>(found, index), ...);
  return found;
}

// The kernel of instance `index` if its H is from kLeast to kMost, else null; compiles only those.
template <int kLeast, int kMost>
SingleKernel single_kernel_between(int index) {
  return single_kernel_between<kLeast, kMost>(index, std::make_index_sequence<std::size(kSingleInstances)>{});
}

}  // namespace affnet
