// Marks functions that run on the host and, where CUDA compiles them, on the device.
#pragma once

#if defined(__CUDACC__)
#define AFFNET_HD __host__ __device__ __forceinline__
#else
#define AFFNET_HD inline __attribute__((always_inline))
#endif
