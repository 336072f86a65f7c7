// A library of the tensor-core kernels run by the host emulator, for tests/test_cuda_mma.py.
#include "cuda/spectral_map_vjp_mma.cuh"
#include "emulated.h"

#ifndef AFFNET_QUADS  // all that are compiled for a GPU
#define AFFNET_QUADS 2, 3, 4, 5, 6, 8, 10
#define AFFNET_FMA
#endif

namespace {

// A kernel instance, as it is launched.
template <int kQuads>
struct Instance {
  static constexpr int kVjpQuads = std::min(kQuads, affnet::kMaxVjpQuads);
  using Shape = affnet::VjpShape<kVjpQuads>;

  static void run(const affnet::MapArguments<float>& a, bool backward, bool count_banks, Report& report) {
    const affnet::RowTiling tiling(a.H, a.W);
    affnet::emulator::launch(
        a.K * a.runs, threads(backward), shared_bytes(backward), report,
        [&] {
          if (backward) {
            affnet::map_vjp_mma_kernel<kVjpQuads>(a, tiling);
          } else {
            affnet::map_mma_kernel<kQuads>(a, tiling);
          }
        },
        count_banks);
  }

  static int threads(bool backward) { return 32 * (backward ? Shape::kWarps : affnet::kForwardWarps); }
  static int shared_bytes(bool backward) { return backward ? Shape::kBytes : affnet::Layers<kQuads>::kBytes; }
};

// Calls body(Instance<quads>{}), if there is one.
template <typename Body>
void with_quads(int quads, const Body& body) {
  [&]<int... kQuads>(std::integer_sequence<int, kQuads...>) {
    ((quads == kQuads ? body(Instance<kQuads>{}) : void()), ...);
  }(std::integer_sequence<int, AFFNET_QUADS>{});
}

// One product: the whole matrices, each element by the lane that holds it.
void one_product(const float* a,  // [16, 8]
                 const float* b,  // [8, 8]
                 float* c) {      // [16, 8]
  const affnet::Lane lane;
  float left[4], right[2], sum[4];
  for (int i = 0; i < 4; ++i) left[i] = a[(lane.g + 8 * (i % 2)) * 8 + lane.t + 4 * (i / 2)];
  for (int i = 0; i < 2; ++i) right[i] = b[(lane.t + 4 * i) * 8 + lane.g];
  for (int i = 0; i < 4; ++i) sum[i] = c[(lane.g + 8 * (i / 2)) * 8 + 2 * lane.t + i % 2];
  affnet::mma_tf32(sum, left, right);
  for (int i = 0; i < 4; ++i) c[(lane.g + 8 * (i / 2)) * 8 + 2 * lane.t + i % 2] = sum[i];
}

}  // namespace

extern "C" {

const char* map_float(affnet::MapArguments<float>* a, bool backward, int quads, bool count_banks) {
  if (quads == 0) quads = affnet::mma_quads(a->D, a->Dh, backward);
#ifdef AFFNET_FMA
  if (quads == 0 || (backward && quads > affnet::kMaxVjpQuads)) return map(a, backward, 0, count_banks);
#endif
  Report report;
  with_quads(quads, [&](auto instance) { instance.run(*a, backward, count_banks, report); });
  return words(report);
}
const char* reduce_float(const float* partials, int64_t runs, int K, int D, int Dh, float* dw1, float* db1, float* dw2,
                         float* db2) {
  return reduce(partials, runs, K, D, Dh, dw1, db1, dw2, db2);
}

const char* run_product(const float* a, const float* b, float* c) {
  Report report;
  affnet::emulator::launch(1, 32, 0, report, [&] { one_product(a, b, c); });
  return words(report);
}

// Quads, threads and shared memory of a launch; no quads: plain FMA.
void mma_facts(int D, int Dh, bool backward, int* facts) {
  facts[0] = affnet::mma_quads(D, Dh, backward);
  with_quads(facts[0],
             [&](auto instance) { facts[1] = instance.threads(backward), facts[2] = instance.shared_bytes(backward); });
}

int64_t runs_of_block(int64_t tiles, int K, int ctas) { return affnet::runs_of_block(tiles, K, ctas); }
uint32_t quotient(uint32_t n, uint32_t divisor) { return affnet::Divisor(divisor).quotient(n); }
}
