// The one-launch 16-bit kernel's interface to the launcher, without its code.
#pragma once

#include "../device.h"
#include "half.h"

namespace affnet {

using HalfKernel = void (*)(HalfArguments);

// The constants of the transforms, in the memory of the present device; asked for once per device.
const uint32_t* dft_table();

// Instances of one or of more tiles, in source files of their own so that they compile beside each other.
HalfKernel small_bfloat16_kernel(const HalfPlan& plan);
HalfKernel large_bfloat16_kernel(const HalfPlan& plan);
HalfKernel small_float16_kernel(const HalfPlan& plan);
HalfKernel large_float16_kernel(const HalfPlan& plan);

// The kernel of a plan whose tiles are not 0.
inline HalfKernel half_kernel(const HalfPlan& plan, Half format) {
  if (format == Half::kBfloat16) return plan.tiles == 1 ? small_bfloat16_kernel(plan) : large_bfloat16_kernel(plan);
  return plan.tiles == 1 ? small_float16_kernel(plan) : large_float16_kernel(plan);
}

}  // namespace affnet
