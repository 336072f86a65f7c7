// The one-launch float32 kernels of 7, 8 and 10.
#include "single_instances.cuh"

namespace affnet {

SingleKernel small_single_kernel(int index) { return single_kernel_between<7, 10>(index); }

}  // namespace affnet
