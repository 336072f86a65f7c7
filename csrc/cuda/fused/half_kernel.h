// The one-launch bfloat16 kernel's interface to the launcher, without its code.
#pragma once

#include "../device.h"
#include "half.h"

namespace affnet {

using HalfKernel = void (*)(HalfArguments);

// The constants of the transforms, in the memory of the present device; asked for once per device.
const uint32_t* dft_table();

// Instances of one or of more tiles, in source files of their own so that they compile beside each other.
HalfKernel small_half_kernel(const HalfPlan& plan);
HalfKernel large_half_kernel(const HalfPlan& plan);

// The kernel of a plan whose tiles are not 0.
inline HalfKernel half_kernel(const HalfPlan& plan) {
  return plan.tiles == 1 ? small_half_kernel(plan) : large_half_kernel(plan);
}

}  // namespace affnet
