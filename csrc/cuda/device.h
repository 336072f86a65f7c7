// What a kernel may ask of the machine: its place in the launch, rendezvous, and shared memory by byte offset. Kernels
// use nothing else, so that emulator.h can run the same text on the host and check every access.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define AFFNET_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define AFFNET_DEVICE __device__ __forceinline__
#define AFFNET_HOST_DEVICE __host__ __device__

namespace affnet {

AFFNET_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
AFFNET_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
AFFNET_DEVICE int64_t cta_index() { return blockIdx.x; }
AFFNET_DEVICE int64_t cta_count() { return gridDim.x; }

// All threads of the CTA meet; what they wrote to shared memory is visible to all.
AFFNET_DEVICE void barrier() { __syncthreads(); }

// The same for the 32 threads of a warp.
AFFNET_DEVICE void warp_barrier() { __syncwarp(); }

template <typename V>
AFFNET_DEVICE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

AFFNET_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

template <typename V>
AFFNET_DEVICE V shared_load(uint32_t offset) {
  return *reinterpret_cast<const V*>(shared_memory() + offset);
}

template <typename V>
AFFNET_DEVICE void shared_store(uint32_t offset, V value) {
  *reinterpret_cast<V*>(shared_memory() + offset) = value;
}

}  // namespace affnet

#else

#define AFFNET_KERNEL(threads) inline void
#define AFFNET_DEVICE inline
#define AFFNET_HOST_DEVICE

#include "emulator.h"

#endif
