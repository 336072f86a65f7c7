// The one-launch float32 backward kernels of 7, 8 and 10.
#include "single_backward_instances.cuh"

namespace affnet {

SingleVjpKernel small_single_backward_kernel(int index) { return single_backward_between<7, 10>(index); }

}  // namespace affnet
