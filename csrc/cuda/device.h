// All that a kernel may ask of the machine: its place in the launch, barriers, exchange within a warp, and shared
// memory by byte offset; device_half.h adds 16-bit numbers, matrices and copies. Kernels use nothing else, so that the
// host emulator can run the same source and check every access.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace affnet {

// The formats of a 16-bit number. A pair of them is a 32-bit word, the first number in the lower half.
enum class Half { kFloat16, kBfloat16 };

// 16 bytes that are loaded or stored by one instruction.
struct alignas(16) Words4 {
  uint32_t at[4];
};

struct alignas(8) Words2 {
  uint32_t at[2];
};

}  // namespace affnet

#ifdef __CUDACC__

#define AFFNET_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)  // threads per CTA, CTAs per multiprocessor
#define AFFNET_DEVICE __device__ __forceinline__

namespace affnet {

AFFNET_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
AFFNET_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
AFFNET_DEVICE int64_t cta_index() { return blockIdx.x; }
AFFNET_DEVICE int64_t cta_count() { return gridDim.x; }

// Waits for all threads of the CTA; what they wrote to shared memory before is visible to all afterwards.
AFFNET_DEVICE void barrier() { __syncthreads(); }

// The same among the 32 threads of a warp.
AFFNET_DEVICE void warp_barrier() { __syncwarp(); }

template <typename V>
AFFNET_DEVICE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// c += a b by a warp on tensor cores: a [16, 8] and b [8, 8] are TF32 (float32 whose last 13 bits are ignored), c
// [16, 8] is float32. In lane (g, t) = (lane / 4, lane % 4), element i is a[g + 8 (i % 2)][t + 4 (i / 2)],
// b[t + 4 i][g] and c[g + 8 (i / 2)][2 t + i % 2]. All lanes of the warp must call it; it does not order memory.
AFFNET_DEVICE void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ < 800
  __trap();  // the launcher uses plain FMA on such devices
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

// Global memory that no thread of the launch writes; V has 1, 2, 4, 8 or 16 bytes, and the address is a multiple.
template <typename V>
AFFNET_DEVICE V global_load(const void* from) {
  return *static_cast<const V*>(from);
}

template <typename V>
AFFNET_DEVICE void global_store(void* to, V value) {
  *static_cast<V*>(to) = value;
}

}  // namespace affnet

#include "device_half.h"

#else

#define AFFNET_KERNEL(...) inline void
#define AFFNET_DEVICE inline

// The same functions for the host. The header is not in csrc: it is found through the include path of the tests that
// build kernels with a host compiler (-Itests/cuda_host). Nothing else includes this file without nvcc.
#include "emulator.h"

#endif
