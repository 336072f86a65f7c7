// The one-launch float32 kernels of 14, 16 and 20.
#include "single_instances.cuh"

namespace affnet {

SingleKernel medium_single_kernel(int index) { return single_kernel_between<14, 20>(index); }

}  // namespace affnet
