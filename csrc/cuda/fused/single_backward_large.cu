// The one-launch float32 backward kernels of 28, 32 and 40.
#include "single_backward_instances.cuh"

namespace affnet {

SingleVjpKernel large_single_backward_kernel(int index) { return single_backward_between<28, 40>(index); }

}  // namespace affnet
