// What device.h offers for 16-bit numbers on a GPU: pairs in a word, 8 x 8 matrices between shared memory and
// registers, products on tensor cores, asynchronous copies. It needs compute capability 8.0. The host's versions are in
// tests/cuda_host/emulated_half.h.
//
// A matrix is 8 rows of 8 numbers of 16 bits. In a register of lane (g, t) = (lane / 4, lane % 4) it is the pair of
// columns 2 t and 2 t + 1 of row g. All lanes of a warp must call the functions that exchange between them.
#pragma once

#include "device.h"

namespace affnet {

// Two numbers rounded to nearest, ties to even.
template <Half kFormat>
AFFNET_DEVICE uint32_t pack(float first, float second) {
  uint32_t pair;
  if constexpr (kFormat == Half::kFloat16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
}

// The same of max(first, 0) and max(second, 0), in one instruction. A NaN stays one.
AFFNET_DEVICE uint32_t pack_relu(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <Half kFormat>
AFFNET_DEVICE float first_of(uint32_t pair) {
  if constexpr (kFormat == Half::kBfloat16) return float_of(pair << 16);
  float value;
  asm("{ .reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a; }" : "=f"(value) : "r"(pair));
  return value;
}

template <Half kFormat>
AFFNET_DEVICE float second_of(uint32_t pair) {
  if constexpr (kFormat == Half::kBfloat16) return float_of(pair & 0xffff0000);
  float value;
  asm("{ .reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b; }" : "=f"(value) : "r"(pair));
  return value;
}

// Pairs of float16, each result rounded once.
AFFNET_DEVICE uint32_t add_pairs(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("add.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

AFFNET_DEVICE uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}

AFFNET_DEVICE uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

AFFNET_DEVICE uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// The smaller and the larger numbers; of a number and a NaN, the number.
AFFNET_DEVICE uint32_t min_pairs(uint32_t a, uint32_t b) {
  uint32_t smaller;
  asm("min.f16x2 %0, %1, %2;" : "=r"(smaller) : "r"(a), "r"(b));
  return smaller;
}

AFFNET_DEVICE uint32_t max_pairs(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// The product of two complex numbers, (re, im) each: the first product of each part is rounded, then its sum with the
// second one.
AFFNET_DEVICE uint32_t multiply_complex(uint32_t a, uint32_t b) {
  uint32_t product;
  const uint32_t rotated = __byte_perm(b, 0, 0x1032) ^ 0x8000;  // i b
  asm("{\n"
      "  .reg .f16 re, im;\n"
      "  .reg .b32 a0, a1;\n"
      "  mov.b32 {re, im}, %1;\n"
      "  mov.b32 a0, {re, re};\n"
      "  mov.b32 a1, {im, im};\n"
      "  mul.f16x2 %0, a0, %2;\n"
      "  fma.rn.f16x2 %0, a1, %3, %0;\n"
      "}"
      : "=&r"(product)
      : "r"(a), "r"(b), "r"(rotated));
  return product;
}

// The larger magnitudes of two pairs of bfloat16. The signs of the result mean nothing, and a NaN may be passed over.
AFFNET_DEVICE uint32_t larger_magnitudes(uint32_t a, uint32_t b) {
  uint32_t larger;
#if __CUDA_ARCH__ >= 860
  asm("max.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
#else  // magnitudes compare as integers do
  a &= 0x7fff7fff, b &= 0x7fff7fff;
  larger = __vmaxu2(a, b);
#endif
  return larger;
}

// e^v has no instruction, 2^v does: two units in the last place.
AFFNET_DEVICE float exp2_approximate(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// 1 / v within one unit in the last place.
AFFNET_DEVICE float reciprocal_approximate(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// tanh(v) with a relative error of at most 2^-11.
AFFNET_DEVICE float tanh_approximate(float v) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

template <typename V>
AFFNET_DEVICE V shuffle(V value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// The largest value of a warp.
AFFNET_DEVICE uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ < 800
  __trap();
  return value;
#else
  return __reduce_max_sync(0xffffffffu, value);
#endif
}

AFFNET_DEVICE int warp_max(int value) {
#if __CUDA_ARCH__ < 800
  __trap();
  return value;
#else
  return __reduce_max_sync(0xffffffffu, value);
#endif
}

AFFNET_DEVICE uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory() + offset));
}

// Four matrices from shared memory: lane 8 q + r names the offset of row r of matrix q, a multiple of 16 bytes. The
// results are registers of matrix 0 to 3, or of their transposes.
AFFNET_DEVICE void load_matrices(uint32_t (&m)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(offset))
               : "memory");
}

AFFNET_DEVICE void load_matrices_transposed(uint32_t (&m)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(offset))
               : "memory");
}

// Two matrices; lanes 0 to 15 name rows.
AFFNET_DEVICE void load_matrices_transposed(uint32_t (&m)[2], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(m[0]), "=r"(m[1])
               : "r"(shared_address(offset))
               : "memory");
}

// Stores matrices without stmatrix, which compute capability 9.0 brought.
template <int kCount>
AFFNET_DEVICE void store_matrices_by_lanes(uint32_t offset, const uint32_t (&m)[kCount], bool transposed) {
  const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int q = 0; q < kCount; ++q) {
    if (transposed) {
      const uint32_t first = shuffle(offset, 8 * q + 2 * t), second = shuffle(offset, 8 * q + 2 * t + 1);
      shared_store(first + 2 * g, static_cast<uint16_t>(m[q]));
      shared_store(second + 2 * g, static_cast<uint16_t>(m[q] >> 16));
    } else {
      shared_store(shuffle(offset, 8 * q + g) + 4 * t, m[q]);
    }
  }
}

// The way back.
AFFNET_DEVICE void store_matrices(uint32_t offset, const uint32_t (&m)[4]) {
#if __CUDA_ARCH__ < 900
  store_matrices_by_lanes(offset, m, false);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(offset)),
               "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
#endif
}

AFFNET_DEVICE void store_matrices_transposed(uint32_t offset, const uint32_t (&m)[4]) {
#if __CUDA_ARCH__ < 900
  store_matrices_by_lanes(offset, m, true);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(offset)),
               "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
#endif
}

AFFNET_DEVICE void store_matrices_transposed(uint32_t offset, const uint32_t (&m)[2]) {
#if __CUDA_ARCH__ < 900
  store_matrices_by_lanes(offset, m, true);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(offset)),
               "r"(m[0]), "r"(m[1])
               : "memory");
#endif
}

// The register of the transposed matrix.
AFFNET_DEVICE uint32_t transpose_matrix(uint32_t m) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(m));
  return transposed;
}

// c += a b by a warp on tensor cores: a [16, 16] and b [16, 8] of 16-bit numbers, c [16, 8] float32. Register i of a is
// the matrix of rows 8 (i % 2) and columns 8 (i / 2); register i of b is the transpose of rows 8 i; c is as in
// mma_tf32: element i is at row g + 8 (i / 2) and column 2 t + i % 2.
#define AFFNET_MMA(c, shape, type, a_registers, b_registers, ...)                                                      \
  do {                                                                                                                 \
    const float c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];                                                            \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, " a_registers ", " b_registers \
        ";"                                                                                                            \
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])                                                               \
        : "f"(c0), "f"(c1), "f"(c2), "f"(c3), __VA_ARGS__);                                                            \
  } while (false)

template <Half kFormat>
AFFNET_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ < 800
  __trap();
#else
  if constexpr (kFormat == Half::kFloat16) {
    AFFNET_MMA(c, "m16n8k16", "f16", "{%8, %9, %10, %11}", "{%12, %13}, {%4, %5, %6, %7}", "r"(a[0]), "r"(a[1]),
               "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    AFFNET_MMA(c, "m16n8k16", "bf16", "{%8, %9, %10, %11}", "{%12, %13}, {%4, %5, %6, %7}", "r"(a[0]), "r"(a[1]),
               "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// The same with half of the contraction: a [16, 8] and b [8, 8].
template <Half kFormat>
AFFNET_DEVICE void mma(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
#if __CUDA_ARCH__ < 800
  __trap();
#else
  if constexpr (kFormat == Half::kFloat16) {
    AFFNET_MMA(c, "m16n8k8", "f16", "{%8, %9}", "{%10}, {%4, %5, %6, %7}", "r"(a[0]), "r"(a[1]), "r"(b[0]));
  } else {
    AFFNET_MMA(c, "m16n8k8", "bf16", "{%8, %9}", "{%10}, {%4, %5, %6, %7}", "r"(a[0]), "r"(a[1]), "r"(b[0]));
  }
#endif
}

#undef AFFNET_MMA

// Starts to copy 4, 8 or 16 bytes from global to shared memory; both addresses are multiples of that. The bytes are
// there for this thread after it has waited for them, for others after the barrier that follows.
template <int kBytes>
AFFNET_DEVICE void copy_async(uint32_t offset, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(offset)), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(offset)), "l"(from), "n"(kBytes)
                 : "memory");
  }
}

// Ends a group of copies; waits for all of this thread's groups but the last kPending.
AFFNET_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
AFFNET_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace affnet
