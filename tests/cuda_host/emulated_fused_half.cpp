// The one-launch kernel for bfloat16 tensors on the host emulator; for tests/test_cuda_fused_half.py. A build may name
// the instances that it compiles: -DAFFNET_HALF_INSTANCES="X(1, 4) X(2, 3)", tiles and quads.
#include <cstring>

#include "cuda/fused/half_instances.cuh"
#include "summary.h"

namespace affnet {
namespace {

constexpr auto kTable = make_dft_table();

#ifdef AFFNET_FEW_INSTANCES  // what the tests of mutations need

HalfKernel kernel_of(const HalfPlan& plan) {
  return plan.whole ? half_forward_kernel<1, 4, true> : half_forward_kernel<2, 4, false>;
}

#else

HalfKernel kernel_of(const HalfPlan& plan) {
  return plan.tiles == 0   ? nullptr
         : plan.tiles == 1 ? half_kernel_of<1>(plan)
         : plan.tiles == 2 ? half_kernel_of<2>(plan)
                           : half_kernel_of<3>(plan);
}

#endif

}  // namespace
}  // namespace affnet

extern "C" {

void half_plan(const affnet::HalfFacts* facts, affnet::HalfPlan* plan) { *plan = affnet::plan_half(*facts); }

int half_activation(const char* name) {
#define AFFNET_MATCH(known, enumerator) \
  if (std::strcmp(name, known) == 0) return static_cast<int>(affnet::Activation::enumerator);
  AFFNET_ACTIVATIONS(AFFNET_MATCH)
#undef AFFNET_MATCH
  return -1;
}

// Runs a call as its plan says, with so many CTAs if that is not 0.
const char* half_forward(const affnet::HalfFacts* facts, const uint16_t* x, uint16_t* y, const float* w1,
                         const float* b1, const float* w2, const float* b2, float threshold, int activation,
                         int64_t ctas, bool count_banks) {
  const affnet::HalfPlan plan = affnet::plan_half(*facts);
  affnet::HalfArguments a{.x = x, .y = y, .w1 = w1, .b1 = b1, .w2 = w2, .b2 = b2};
  a.threshold = threshold;
  a.activation = static_cast<affnet::Activation>(activation);
  affnet::set_half_shape(a, *facts, plan, affnet::kTable.data());
  const auto kernel = affnet::kernel_of(plan);
  if (kernel == nullptr) return "no instance";
  affnet::emulator::Report report;
  const size_t elements = facts->B * facts->K * facts->D * facts->H * facts->W;
  const size_t weights = 8 * facts->K * facts->D * facts->D, biases = 8 * facts->K * facts->D;
  report.global = {{x, 2 * elements},
                   {y, 2 * elements},
                   {w1, weights},
                   {b1, biases},
                   {w2, weights},
                   {b2, biases},
                   {affnet::kTable.data(), sizeof(affnet::kTable)}};
  affnet::emulator::launch(
      ctas > 0 ? ctas : plan.ctas, plan.threads, plan.shared_bytes, report, [&] { kernel(a); }, count_banks);
  return affnet::emulator::summary(report);
}
}
