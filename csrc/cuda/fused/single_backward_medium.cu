// The one-launch float32 backward kernels of 14, 16 and 20.
#include "single_backward_instances.cuh"

namespace affnet {

SingleVjpKernel medium_single_backward_kernel(int index) { return single_backward_between<14, 20>(index); }

}  // namespace affnet
