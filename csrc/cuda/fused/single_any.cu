// The one-launch float32 kernels for any sizes.
#include "single_instances.cuh"

namespace affnet {

SingleKernel any_single_kernel(int index) { return single_kernel_between<0, 0>(index); }

}  // namespace affnet
