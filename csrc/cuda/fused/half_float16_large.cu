// The one-launch kernels for float16 of more than 16 x 16.
#include "half_instances.cuh"

namespace affnet {

HalfKernel large_float16_kernel(const HalfPlan& plan) {
  return plan.tiles == 2 ? half_kernel_of<Half::kFloat16, 2>(plan) : half_kernel_of<Half::kFloat16, 3>(plan);
}

}  // namespace affnet
