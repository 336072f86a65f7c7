// A library of the CUDA kernels run by the host emulator, for tests/test_cuda_emulated.py.
#include <cstring>

#include "cuda/planes.cuh"
#include "emulated.h"

namespace {

// The upper half of a float32, as bfloat16 is.
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

// A kernel with a bug of each kind that the emulator must find.
void broken(const std::string& kind) {
  const int i = affnet::thread_index();
  const uint32_t mine = 4 * i, next = 4 * ((i + 1) % affnet::thread_count());
  if (kind == "stuck" && i == 3) return;
  if (kind == "divergent warp" && i < 40) affnet::warp_barrier();
  if (kind != "uninitialised") affnet::shared_store(mine, i);
  affnet::barrier();
  if (kind == "race" || kind == "warp race") affnet::shared_store(mine, -i);
  if (kind == "warp race") affnet::warp_barrier();
  if (kind == "shuffle for a barrier") {
    affnet::shared_store(mine, -i);
    affnet::shuffle_xor(i, 1);
    affnet::shared_load<int>(4 * (i ^ 1));
    affnet::barrier();
  }
  affnet::shared_load<int>(kind == "out of bounds" ? mine + 512 : kind == "misaligned" ? next + 2 : next);
  if (kind == "read, then write") affnet::shared_store(mine, 1);
}

// Each warp adds up its lanes by shuffles, and hands the sum over without a CTA barrier.
void warp_sums(int* sums) {
  int value = affnet::thread_index();
  for (int mask = 16; mask > 0; mask /= 2) value += affnet::shuffle_xor(value, mask);
  const int warp = affnet::thread_index() / 32;
  if (affnet::thread_index() % 32 == 0) affnet::shared_store(4 * warp, value);
  affnet::warp_barrier();
  sums[affnet::thread_index()] = affnet::shared_load<int>(4 * warp);
}

}  // namespace

extern "C" {

const char* map_float(affnet::MapArguments<float>* a, bool backward, int tile, bool count_banks) {
  return map(a, backward, tile, count_banks);
}
const char* map_double(affnet::MapArguments<double>* a, bool backward, int tile, bool count_banks) {
  return map(a, backward, tile, count_banks);
}
const char* reduce_float(const float* partials, int64_t runs, int K, int D, int Dh, float* dw1, float* db1, float* dw2,
                         float* db2) {
  return reduce(partials, runs, K, D, Dh, dw1, db1, dw2, db2);
}
const char* reduce_double(const double* partials, int64_t runs, int K, int D, int Dh, double* dw1, double* db1,
                          double* dw2, double* db2) {
  return reduce(partials, runs, K, D, Dh, dw1, db1, dw2, db2);
}

void load_brain(const Brain* x, float* to, int64_t count, int stride) {
  Report report;
  affnet::emulator::launch(3, affnet::kPlaneThreads, 0, report, [&] { affnet::load_kernel(x, to, count, stride); });
}
void store_brain(const float* from, const Brain* x, Brain* y, int64_t count, int stride) {
  Report report;
  affnet::emulator::launch(3, affnet::kPlaneThreads, 0, report,
                           [&] { affnet::store_kernel(from, x, y, count, stride); });
}

const char* run_broken(const char* kind) {
  Report report;
  affnet::emulator::launch(2, 64, 512, report, [&] { broken(kind); });
  return words(report);
}
const char* run_warp_sums(int* sums) {
  Report report;
  affnet::emulator::launch(1, 64, 8, report, [&] { warp_sums(sums); });
  return words(report);
}

// Threads and shared memory of a launch, and what the kernel was compiled for.
void launch_facts(int D, int Dh, bool backward, bool wide, int* facts) {
  const affnet::Launch launch =
      wide ? affnet::launch_for<double>(D, Dh, backward) : affnet::launch_for<float>(D, Dh, backward);
  facts[0] = launch.tile, facts[1] = launch.threads, facts[2] = launch.shared_bytes;
  facts[3] = wide ? (backward ? affnet::kMaxThreads<double, true> : affnet::kMaxThreads<double, false>)
                  : (backward ? affnet::kMaxThreads<float, true> : affnet::kMaxThreads<float, false>);
}
}
