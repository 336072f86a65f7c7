// The interface of the one-launch kernels that compute in float32 to the launcher.
#pragma once

#include "single_arguments.h"

namespace affnet {

using SingleKernel = void (*)(SingleArguments);
using SingleVjpKernel = void (*)(SingleVjpArguments);

// The kernel of an instance, each group in a source file of its own so that they compile beside each other.
SingleKernel any_single_kernel(int index);     // of H = W = 0: any sizes
SingleKernel small_single_kernel(int index);   // up to 10
SingleKernel medium_single_kernel(int index);  // up to 20
SingleKernel large_single_kernel(int index);
SingleVjpKernel any_single_backward_kernel(int index);
SingleVjpKernel sized_single_backward_kernel(int index);

// The forward kernel of a plan that has an instance.
inline SingleKernel single_kernel(const SinglePlan& plan) {
  const int H = kSingleInstances[plan.instance].H;
  return (H == 0    ? any_single_kernel
          : H <= 10 ? small_single_kernel
          : H <= 20 ? medium_single_kernel
                    : large_single_kernel)(plan.instance);
}

// The same for a plan of the backward pass. The partial sums of its CTAs are then added by reduce_kernel.
inline SingleVjpKernel single_backward_kernel(const SinglePlan& plan) {
  const bool any = kSingleInstances[plan.instance].H == 0;
  return (any ? any_single_backward_kernel : sized_single_backward_kernel)(plan.instance);
}

}  // namespace affnet
