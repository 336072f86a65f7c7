// The one-launch float32 kernel on the host emulator; for tests/test_cuda_single.py.
#include <utility>

#include "cuda/fused/single_forward.cuh"
#include "emulated.h"

namespace affnet {

MmaKernel mma_kernel(const LaunchPlan&, bool) { return nullptr; }  // of the planned path, which this library has not

namespace {

template <size_t... i>
SingleKernel instance(int index, std::index_sequence<i...>) {
  SingleKernel found = nullptr;
  ((found = static_cast<int>(i) == index
                ? single_forward_kernel<kSingleInstances[i].H, kSingleInstances[i].W, kSingleInstances[i].quads>
                : found),
   ...);
  return found;
}

}  // namespace
}  // namespace affnet

extern "C" {

void plan_single(int64_t B, int64_t H, int64_t W, int64_t K, int64_t D, int64_t Dh, int shared_limit,
                 affnet::SinglePlan* plan) {
  *plan = affnet::plan_single(B, H, W, K, D, Dh, shared_limit);
}

const char* run_single(const affnet::SingleArguments* a, const affnet::SinglePlan* plan, bool count_banks) {
  affnet::emulator::Report report;
  const auto kernel =
      affnet::instance(plan->instance, std::make_index_sequence<std::size(affnet::kSingleInstances)>{});
  affnet::emulator::launch(plan->grid(a->K), plan->threads, plan->shared_bytes, report, [&] { kernel(*a); }, count_banks);
  return affnet::emulator::summary(report);
}

int layer_bytes(int instance) { return affnet::single_layer_bytes(affnet::kSingleInstances[instance].quads); }

void single_bytes(int* bytes) {
  bytes[0] = sizeof(affnet::SinglePlan), bytes[1] = sizeof(affnet::SingleArguments);
}
}
