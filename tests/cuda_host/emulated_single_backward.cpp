// The one-launch float32 backward kernel on the host emulator; for tests/test_cuda_single_backward.py.
#include "cuda/fused/single_backward_instances.cuh"
#include "cuda/spectral_map_vjp.cuh"
#include "summary.h"

extern "C" {

void plan_single(int64_t B, int64_t H, int64_t W, int64_t K, int64_t D, int64_t Dh, int shared_limit,
                 affnet::SinglePlan* plan) {
  *plan = affnet::plan_single(B, H, W, K, D, Dh, shared_limit, true);
}

// The launch, and the sum of its partial sums.
const char* run_single_backward(const affnet::SingleVjpArguments* a, const affnet::SinglePlan* plan, bool count_banks,
                                float* dw1, float* db1, float* dw2, float* db2) {
  using namespace affnet;
  emulator::Report report;
  const SingleArguments& call = a->call;
  const size_t bytes = call.B * call.K * call.D * call.H * call.W * (call.element == Element::kFloat32 ? 4 : 2);
  report.global = {{call.x, bytes}, {call.y, bytes}, {a->dy, bytes}};
  const SingleVjpKernel kernel = single_backward_between<0, 40>(plan->instance);
  emulator::launch(plan->grid(a->call.K), plan->threads, plan->shared_bytes, report, [&] { kernel(*a); }, count_banks);
  if (a->partials == nullptr) return emulator::summary(report);
  const int64_t elements = a->call.K * partial_size(a->call.D, a->call.D);
  emulator::launch((elements + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0, report, [&] {
    reduce_kernel(a->partials, a->call.ctas_per_block, a->call.K, a->call.D, a->call.D, dw1, db1, dw2, db2);
  });
  return emulator::summary(report);
}

void single_bytes(int* bytes) { bytes[0] = sizeof(affnet::SinglePlan), bytes[1] = sizeof(affnet::SingleVjpArguments); }
}
