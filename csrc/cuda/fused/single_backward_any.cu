// The one-launch float32 backward kernels for any sizes.
#include "single_backward_instances.cuh"

namespace affnet {

SingleVjpKernel any_single_backward_kernel(int index) { return single_backward_between<0, 0>(index); }

}  // namespace affnet
