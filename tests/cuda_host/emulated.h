// What the two libraries of emulated kernels share: launches as the plan says, and the emulator's findings in words.
#pragma once

#include <cstring>

#include "cuda/spectral_map_mma.cuh"
#include "cuda/spectral_map_vjp.cuh"
#include "summary.h"

namespace affnet::emulator {

// The spectral map of one chunk, as mixer.cu launches it.
template <typename T>
const char* map(const MapArguments<T>& a, const LaunchPlan& plan, bool backward, bool count_banks) {
  Report report;
  const auto run = [&](const std::function<void()>& body) {
    launch(plan.ctas(a.K, a.block_images), plan.threads, plan.shared_bytes, report, body, count_banks);
  };
  if (plan.quads == 0) {
    const FmaKernel<T> kernel = fma_kernel<T>(plan, backward);
    run([&] { kernel(a); });
  } else if constexpr (sizeof(T) == 4) {
    const MmaKernel kernel = mma_kernel(plan, backward);
    const RowTiling tiling(a.H, a.W);
    run([&] { kernel(a, tiling); });
  }
  return summary(report);
}

template <typename T>
const char* reduce(const T* partials, int64_t ctas_per_block, int K, int D, int Dh, T* dw1, T* db1, T* dw2, T* db2) {
  Report report;
  const int64_t elements = K * partial_size(D, Dh);
  launch((elements + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0, report,
         [&] { reduce_kernel(partials, ctas_per_block, K, D, Dh, dw1, db1, dw2, db2); });
  return summary(report);
}

}  // namespace affnet::emulator

extern "C" {

// The plan of a call; `tile` or `quads`, unless 0, replaces the chosen kernel instance if there is one for the pass.
void plan_launch(const affnet::CallFacts* facts, int tile, int quads, affnet::LaunchPlan* plan) {
  *plan = quads > 0 && !(facts->backward && quads > affnet::kMaxVjpQuads) ? affnet::plan_mma(*facts, quads)
          : tile > 0                                                      ? affnet::plan_fma(*facts, tile)
                                                                          : affnet::plan_launch(*facts);
}

const char* reduce_float(const float* partials, int64_t ctas_per_block, int K, int D, int Dh, float* dw1, float* db1,
                         float* dw2, float* db2) {
  return affnet::emulator::reduce(partials, ctas_per_block, K, D, Dh, dw1, db1, dw2, db2);
}

// The number of an activation in the kernels' arguments, -1 for an unknown one.
int activation_number(const char* name) {
#define AFFNET_MATCH(known, enumerator) \
  if (std::strcmp(name, known) == 0) return static_cast<int>(affnet::Activation::enumerator);
  AFFNET_ACTIVATIONS(AFFNET_MATCH)
#undef AFFNET_MATCH
  return -1;
}

// Bytes of the structures that the tests build.
void structure_bytes(int* bytes) {
  bytes[0] = sizeof(affnet::CallFacts), bytes[1] = sizeof(affnet::LaunchPlan);
  bytes[2] = sizeof(affnet::MapArguments<float>), bytes[3] = sizeof(affnet::MapArguments<double>);
}
}
