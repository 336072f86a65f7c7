// The one-launch kernels for bfloat16 of more than 16 x 16.
#include "half_instances.cuh"

namespace affnet {

HalfKernel large_half_kernel(const HalfPlan& plan) {
  return plan.tiles == 2 ? half_kernel_of<2>(plan) : half_kernel_of<3>(plan);
}

}  // namespace affnet
