// What a kernel may ask of the machine: its place in the launch, rendezvous, and shared memory by byte offset. Kernels
// use nothing else, so that emulator.h can run the same text on the host and check every access.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define AFFNET_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)  // threads, and CTAs of a multiprocessor
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

// c += a b for a warp, on tensor cores: a [16, 8] and b [8, 8] of TF32 (float32 of which the last 13 bits are not
// read), c [16, 8] of float32. Lane (g, t) = (lane / 4, lane % 4) holds a[g + 8 (i % 2)][t + 4 (i / 2)], b[t + 4 i][g]
// and c[g + 8 (i / 2)][2 t + i % 2] at i. All lanes of the warp must get here; it orders no access to memory.
AFFNET_DEVICE void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ < 800
  __trap();  // on_tensor_cores keeps such devices away
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

AFFNET_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
AFFNET_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

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

#define AFFNET_KERNEL(...) inline void
#define AFFNET_DEVICE inline
#define AFFNET_HOST_DEVICE

#include "emulator.h"

#endif
