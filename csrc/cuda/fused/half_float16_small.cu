// The one-launch kernels for float16 of up to 16 x 16.
#include "half_instances.cuh"

namespace affnet {

HalfKernel small_float16_kernel(const HalfPlan& plan) { return half_kernel_of<Half::kFloat16, 1>(plan); }

}  // namespace affnet
