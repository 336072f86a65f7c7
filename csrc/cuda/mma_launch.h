// Launches of the tensor-core kernels, see spectral_map_mma.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "spectral_map.cuh"

namespace affnet {

// Whether a map of these sizes is computed on tensor cores; only a map of float32 is.
bool on_tensor_cores(int D, int Dh, bool backward);

// CTAs that share a block in the VJP of chunks of up to `units` units.
int64_t mma_vjp_runs(const MapArguments<float>& a, int64_t units);

// Forward, `a.runs` is not read.
void launch_mma(const MapArguments<float>& a, bool backward, cudaStream_t stream);

}  // namespace affnet
