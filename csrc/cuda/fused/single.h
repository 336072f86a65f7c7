// The one-launch float32 kernel's interface to the launcher.
#pragma once

#include "single_arguments.h"

namespace affnet {

using SingleKernel = void (*)(SingleArguments);

// The kernel of an instance, each in a source file of its own so that they compile beside each other.
SingleKernel any_single_kernel(int index);     // of H = W = 0: any sizes
SingleKernel small_single_kernel(int index);   // up to 10
SingleKernel medium_single_kernel(int index);  // up to 20
SingleKernel large_single_kernel(int index);

// The kernel of a plan that has an instance.
inline SingleKernel single_kernel(const SinglePlan& plan) {
  const int H = kSingleInstances[plan.instance].H;
  return (H == 0    ? any_single_kernel
          : H <= 10 ? small_single_kernel
          : H <= 20 ? medium_single_kernel
                    : large_single_kernel)(plan.instance);
}

}  // namespace affnet
