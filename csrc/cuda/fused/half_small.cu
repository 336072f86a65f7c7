// The one-launch kernels for bfloat16 of up to 16 x 16.
#include "half_instances.cuh"

namespace affnet {

HalfKernel small_half_kernel(const HalfPlan& plan) { return half_kernel_of<1>(plan); }

}  // namespace affnet
