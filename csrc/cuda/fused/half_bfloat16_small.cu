// The one-launch kernels for bfloat16 of up to 16 x 16.
#include "half_instances.cuh"

namespace affnet {

HalfKernel small_bfloat16_kernel(const HalfPlan& plan) { return half_kernel_of<Half::kBfloat16, 1>(plan); }

}  // namespace affnet
