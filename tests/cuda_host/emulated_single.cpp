// The one-launch float32 kernel on the host emulator; for tests/test_cuda_single.py.
#include "cuda/fused/single_instances.cuh"
#include "summary.h"

namespace affnet {

SingleKernel any_single_kernel(int index) { return single_kernel_between<0, 40>(index); }
SingleKernel small_single_kernel(int index) { return any_single_kernel(index); }
SingleKernel medium_single_kernel(int index) { return any_single_kernel(index); }
SingleKernel large_single_kernel(int index) { return any_single_kernel(index); }

}  // namespace affnet

extern "C" {

void plan_single(int64_t B, int64_t H, int64_t W, int64_t K, int64_t D, int64_t Dh, int shared_limit,
                 affnet::SinglePlan* plan) {
  *plan = affnet::plan_single(B, H, W, K, D, Dh, shared_limit);
}

const char* run_single(const affnet::SingleArguments* a, const affnet::SinglePlan* plan, bool count_banks) {
  affnet::emulator::Report report;
  const size_t bytes = a->B * a->K * a->D * a->H * a->W * (a->element == affnet::Element::kFloat32 ? 4 : 2);
  report.global = {{a->x, bytes}, {a->y, bytes}};
  const affnet::SingleKernel kernel = affnet::single_kernel(*plan);
  affnet::emulator::launch(
      plan->grid(a->K), plan->threads, plan->shared_bytes, report, [&] { kernel(*a); }, count_banks);
  return affnet::emulator::summary(report);
}

int layer_bytes(int instance) { return affnet::single_layer_bytes(affnet::kSingleInstances[instance].quads); }

void single_bytes(int* bytes) { bytes[0] = sizeof(affnet::SinglePlan), bytes[1] = sizeof(affnet::SingleArguments); }
}
