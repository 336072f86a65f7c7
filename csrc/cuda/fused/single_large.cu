// The one-launch float32 kernels of 28, 32 and 40.
#include "single_instances.cuh"

namespace affnet {

SingleKernel large_single_kernel(int index) { return single_kernel_between<28, 40>(index); }

}  // namespace affnet
