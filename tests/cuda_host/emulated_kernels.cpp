// The plain FMA kernels and the elementwise ones on the host emulator, and kernels with bugs that the emulator must
// find; for tests/test_cuda_emulated.py.
#include <cstring>

#include "cuda/planes.cuh"
#include "emulated.h"

namespace affnet {

// This library has no tensor-core kernels: emulated_mma.cpp compiles those.
MmaKernel mma_kernel(const LaunchPlan&, bool) { return nullptr; }

namespace {

// bfloat16: the upper half of a float32.
struct Brain {
  uint16_t bits;
  explicit operator float() const {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  explicit Brain(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    bits = static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);  // to nearest, ties to even
  }
};

// A kernel with a bug of the given kind, which the emulator must find.
void broken(const std::string& kind) {
  const int i = thread_index();
  const uint32_t mine = 4 * i, next = 4 * ((i + 1) % thread_count());
  if (kind == "stuck" && i == 3) return;
  if (kind == "divergent warp" && i < 40) warp_barrier();
  if (kind != "uninitialised") shared_store(mine, i);
  barrier();
  if (kind == "race" || kind == "warp race") shared_store(mine, -i);
  if (kind == "warp race") warp_barrier();
  if (kind == "shuffle for a barrier") {
    shared_store(mine, -i);
    shuffle_xor(i, 1);
    shared_load<int>(4 * (i ^ 1));
    barrier();
  }
  shared_load<int>(kind == "out of bounds" ? mine + 512 : kind == "misaligned" ? next + 2 : next);
  if (kind == "read, then write") shared_store(mine, 1);
}

// Each warp adds up its lanes by shuffles and passes the sum on without a CTA barrier.
void warp_sums(int* sums) {
  int value = thread_index();
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  const int warp = thread_index() / 32;
  if (thread_index() % 32 == 0) shared_store(4 * warp, value);
  warp_barrier();
  sums[thread_index()] = shared_load<int>(4 * warp);
}

}  // namespace
}  // namespace affnet

using affnet::emulator::launch, affnet::emulator::map, affnet::emulator::reduce, affnet::emulator::Report;
using affnet::emulator::summary;

extern "C" {

const char* map_float(const affnet::MapArguments<float>* a, const affnet::LaunchPlan* plan, bool backward,
                      bool count_banks) {
  return map(*a, *plan, backward, count_banks);
}
const char* map_double(const affnet::MapArguments<double>* a, const affnet::LaunchPlan* plan, bool backward,
                       bool count_banks) {
  return map(*a, *plan, backward, count_banks);
}
const char* reduce_double(const double* partials, int64_t ctas_per_block, int K, int D, int Dh, double* dw1,
                          double* db1, double* dw2, double* db2) {
  return reduce(partials, ctas_per_block, K, D, Dh, dw1, db1, dw2, db2);
}

void load_brain(const affnet::Brain* x, float* to, int64_t count, int stride) {
  Report report;
  launch(3, affnet::kPlaneThreads, 0, report, [&] { affnet::load_kernel(x, to, count, stride); });
}
void store_brain(const float* from, const affnet::Brain* x, affnet::Brain* y, int64_t count, int stride) {
  Report report;
  launch(3, affnet::kPlaneThreads, 0, report, [&] { affnet::store_kernel(from, x, y, count, stride); });
}

const char* run_broken(const char* kind) {
  Report report;
  launch(2, 64, 512, report, [&] { affnet::broken(kind); });
  return summary(report);
}
const char* run_warp_sums(int* sums) {
  Report report;
  launch(1, 64, 8, report, [&] { affnet::warp_sums(sums); });
  return summary(report);
}

// Whether the instance that a plan names is compiled.
bool has_kernel(const affnet::LaunchPlan* plan, bool backward, bool float64) {
  return float64 ? affnet::fma_kernel<double>(*plan, backward) != nullptr
                 : affnet::fma_kernel<float>(*plan, backward) != nullptr;
}

void limits(int64_t* found) {
  found[0] = affnet::kMaxChannels, found[1] = affnet::kMaxPlane, found[2] = affnet::kMaxSharedBytes;
}

// The threads that a kernel is compiled for.
int max_threads(bool backward, bool float64) {
  return float64 ? (backward ? affnet::kMaxThreads<double, true> : affnet::kMaxThreads<double, false>)
                 : (backward ? affnet::kMaxThreads<float, true> : affnet::kMaxThreads<float, false>);
}
}
