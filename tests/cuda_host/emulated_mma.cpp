// The tensor-core kernels on the host emulator, and plain FMA for the sizes that those do not take; for
// tests/test_cuda_mma.py.
#include "cuda/spectral_map_vjp_mma.cuh"
#include "emulated.h"

namespace affnet {

MmaKernel mma_kernel(const LaunchPlan& plan, bool backward) { return mma_kernel(plan.quads, backward, MmaQuads{}); }

namespace {

// One product of whole matrices, each element loaded and stored by the lane that holds it.
void one_product(const float* a,  // [16, 8]
                 const float* b,  // [8, 8]
                 float* c) {      // [16, 8]
  const Lane lane;
  float left[4], right[2], sum[4];
  for (int i = 0; i < 4; ++i) left[i] = a[(lane.g + 8 * (i % 2)) * 8 + lane.t + 4 * (i / 2)];
  for (int i = 0; i < 2; ++i) right[i] = b[(lane.t + 4 * i) * 8 + lane.g];
  for (int i = 0; i < 4; ++i) sum[i] = c[(lane.g + 8 * (i / 2)) * 8 + 2 * lane.t + i % 2];
  mma_tf32(sum, left, right);
  for (int i = 0; i < 4; ++i) c[(lane.g + 8 * (i / 2)) * 8 + 2 * lane.t + i % 2] = sum[i];
}

}  // namespace
}  // namespace affnet

using affnet::emulator::launch, affnet::emulator::map, affnet::emulator::Report, affnet::emulator::summary;

extern "C" {

const char* map_float(const affnet::MapArguments<float>* a, const affnet::LaunchPlan* plan, bool backward,
                      bool count_banks) {
  return map(*a, *plan, backward, count_banks);
}

const char* run_product(const float* a, const float* b, float* c) {
  Report report;
  launch(1, 32, 0, report, [&] { affnet::one_product(a, b, c); });
  return summary(report);
}

int64_t mma_ctas_per_block(int64_t tiles, int K, int ctas_per_multiprocessor) {
  return affnet::mma_ctas_per_block(tiles, K, ctas_per_multiprocessor);
}
uint32_t quotient(uint32_t n, uint32_t divisor) { return affnet::Divisor(divisor).quotient(n); }
}
