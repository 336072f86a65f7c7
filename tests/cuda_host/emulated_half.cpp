// The device layer for 16-bit numbers on the host emulator, one instruction at a time, and kernels with bugs that the
// emulator must find; for tests/test_cuda_half.py.
#include <cstring>
#include <string>

#include "cuda/device.h"
#include "summary.h"

namespace affnet {
namespace {

constexpr uint32_t kRow = 48;  // bytes between the rows of a matrix in shared memory: no bank conflicts

// Four matrices from shared memory to registers and back to other places, each way transposed or not.
void move(const uint16_t* from,  // [4, 8, 8]
          uint16_t* to,          // [4, 8, 8]
          uint32_t* registers,   // [32, 4]
          bool transposed_load, bool transposed_store) {
  const int lane = thread_index();
  const uint32_t mine = lane * kRow, back = 32 * kRow + mine;
  for (int i = 0; i < 8; ++i) shared_store(mine + 2 * i, global_load<uint16_t>(from + 8 * lane + i));
  warp_barrier();
  uint32_t m[4];
  transposed_load ? load_matrices_transposed(m, mine) : load_matrices(m, mine);
  for (int i = 0; i < 4; ++i) global_store(registers + 4 * lane + i, m[i]);
  transposed_store ? store_matrices_transposed(back, m) : store_matrices(back, m);
  warp_barrier();
  for (int i = 0; i < 8; ++i) global_store(to + 8 * lane + i, shared_load<uint16_t>(back + 2 * i));
}

// One product of whole matrices, each element loaded and stored by the lane that holds it.
template <Half kFormat, int kSteps>
void one_product(const uint16_t* a,  // [16, 8 kSteps]
                 const uint16_t* b,  // [8 kSteps, 8]
                 float* c) {         // [16, 8]
  const int g = thread_index() / 4, t = thread_index() % 4, width = 8 * kSteps;
  const auto pair = [](uint16_t first, uint16_t second) { return first | uint32_t{second} << 16; };
  uint32_t left[2 * kSteps], right[kSteps];
  for (int i = 0; i < 2 * kSteps; ++i) {
    const uint16_t* at = a + (g + 8 * (i % 2)) * width + 8 * (i / 2) + 2 * t;
    left[i] = pair(at[0], at[1]);
  }
  for (int i = 0; i < kSteps; ++i) {
    const uint16_t* at = b + (8 * i + 2 * t) * 8 + g;
    right[i] = pair(at[0], at[8]);
  }
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  mma<kFormat>(sum, left, right);
  for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

// Copies 64 words by way of shared memory, asynchronously, with a bug of the given kind.
void copy(const std::string& kind, const uint32_t* from, uint32_t* to) {
  const int i = thread_index(), other = i ^ 33;
  copy_async<4>(4 * i, from + (kind == "out of bounds" ? i + 1 : i));
  if (kind != "no commit") copy_async_commit();
  copy_async<4>(256 + 4 * i, from + i);
  copy_async_commit();
  if (kind == "wait for the first") {
    copy_async_wait<1>();
  } else if (kind != "no wait") {
    copy_async_wait<0>();
  }
  if (kind != "no barrier") barrier();
  if (kind == "endless") {
    for (;;) warp_barrier();
  }
  const uint32_t offset = kind == "wait for the first" || kind == "no commit" ? 256 : 0;
  to[other] = shared_load<uint32_t>(offset + 4 * other);
}

void two_bytes(bool apart) {
  shared_store(static_cast<uint32_t>(apart ? 2 * thread_index() : 0), static_cast<uint16_t>(thread_index()));
}

}  // namespace
}  // namespace affnet

using affnet::Half, affnet::emulator::launch, affnet::emulator::Report, affnet::emulator::summary;

extern "C" {

const char* run_move(const uint16_t* from, uint16_t* to, uint32_t* registers, bool transposed_load,
                     bool transposed_store) {
  Report report;
  report.global = {{from, 512}, {to, 512}, {registers, 512}};
  launch(
      1, 32, 64 * affnet::kRow, report, [&] { affnet::move(from, to, registers, transposed_load, transposed_store); },
      true);
  return summary(report);
}

const char* run_half_product(const uint16_t* a, const uint16_t* b, float* c, bool bfloat16, int steps) {
  Report report;
  launch(1, 32, 0, report, [&] {
    if (bfloat16) {
      steps == 2 ? affnet::one_product<Half::kBfloat16, 2>(a, b, c) : affnet::one_product<Half::kBfloat16, 1>(a, b, c);
    } else {
      steps == 2 ? affnet::one_product<Half::kFloat16, 2>(a, b, c) : affnet::one_product<Half::kFloat16, 1>(a, b, c);
    }
  });
  return summary(report);
}

const char* run_copy(const char* kind, const uint32_t* from, uint32_t* to) {
  Report report;
  report.global = {{from, 256}, {to, 256}};
  launch(1, 64, 512, report, [&] { affnet::copy(kind, from, to); });
  return summary(report);
}

const char* run_two_bytes(bool apart) {
  Report report;
  launch(1, 64, 128, report, [&] { affnet::two_bytes(apart); });
  return summary(report);
}

// The pairs that a function of the device layer makes of two, by its number; every lane of a warp has its own.
void run_pairs(int function, const uint32_t* a, const uint32_t* b, uint32_t* result) {
  using namespace affnet;
  Report report;
  launch(1, 32, 0, report, [&] {
    const int i = thread_index();
    switch (function) {
      case 0:
        result[i] = add_pairs(a[i], b[i]);
        break;
      case 1:
        result[i] = subtract_pairs(a[i], b[i]);
        break;
      case 2:
        result[i] = multiply_pairs(a[i], b[i]);
        break;
      case 3:
        result[i] = fma_pairs(a[i], b[i], a[i]);
        break;
      case 4:
        result[i] = larger_magnitudes(a[i], b[i]) & 0x7fff7fff;
        break;
      case 5:
        result[i] = pack<Half::kFloat16>(float_of(a[i]), float_of(b[i]));
        break;
      case 6:
        result[i] = pack<Half::kBfloat16>(float_of(a[i]), float_of(b[i]));
        break;
      case 7:
        result[i] = pack_relu(float_of(a[i]), float_of(b[i]));
        break;
      case 8:
        result[i] = transpose_matrix(a[i]);
        break;
      case 9:
        result[i] = warp_max(a[i]);
        break;
      case 10:
        result[i] = shuffle(a[i], static_cast<int>(b[i] % 32));
        break;
      case 11:
        result[i] = bits_of(first_of<Half::kFloat16>(a[i]));
        break;
      case 12:
        result[i] = bits_of(second_of<Half::kBfloat16>(a[i]));
        break;
    }
  });
}
}
