// The one-launch float32 backward kernels for one size each.
#include "single_backward_instances.cuh"

namespace affnet {

SingleVjpKernel sized_single_backward_kernel(int index) { return single_backward_between<1, 40>(index); }

}  // namespace affnet
