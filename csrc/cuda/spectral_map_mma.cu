// The instances of the tensor-core kernels, in a source file of their own so that they compile beside the others.
#include "spectral_map_vjp_mma.cuh"

namespace affnet {

MmaKernel mma_kernel(const LaunchPlan& plan, bool backward) { return mma_kernel(plan.quads, backward, MmaQuads{}); }

}  // namespace affnet
