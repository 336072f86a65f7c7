// Which way a call of the backend "cuda" goes, and why not the other: in one launch, or as planned in launch_plan.h, by
// cuFFT with one kernel for the spectral map. A pure function of the call's facts, without torch and CUDA: the launcher
// (mixer.cu), the tests and Python (`_C.cuda_path`) ask the same one.
//
// Bytes that must move, of x and y and everything between: 4 an element in one launch and up to 39 planned, for 16-bit
// types; 8 and 36 for float32. So one launch wherever a kernel was compiled for the sizes. Larger maps are planned:
//
//   64 x 64, 16 bits   The spectrum of a block takes 4240 bytes a channel, x 8192: with both in shared memory 199 KiB
//                      at D = 12; with x read again for the residual, 153 KiB at D = 18, the most that fits. Products
//                      with the 64 x 64 matrix are 320 of 386 multiplications an element at D = 16, 0.30 clocks of an
//                      H100's multiprocessor where copying takes 0.22: at best 70 % of a copy's rate, 0.39 predicted
//                      with one CTA of 8 warps to a multiprocessor, against 0.10 to 0.16 planned. It would be worth
//                      it; it needs the matrix in shared memory (its fragments are 128 registers) and is not written.
//   64 x 64, float32   The planes of a block take 17 KiB a channel: 133 KiB at D = 8, 200 KiB at D = 12, and from D =
//   16
//                      on a cluster of two CTAs, which exchange half of the spectrum, 4 bytes an element each way.
//   128 x 128          Half the spectrum of one channel takes 33 KiB in 16 bits: a cluster of two at D = 8, of four at
//                      D = 16. Products with the matrix are 640 multiplications an element, 0.53 clocks: at best 40 %
//                      of a copy's rate, and 2 bytes an element of sums go through the cluster's network at 3.3 TB/s,
//                      another 0.14 clocks. That is 1.5 times as fast as planned at most, for a kernel of its own.
#pragma once

#include "element.h"
#include "half.h"
#include "single_plan.h"

namespace affnet {

// Why a call is not made in one launch.
enum class Refusal { kNone, kSwitchedOff, kDevice, kType, kSizes, kSharedMemory };

struct PathFacts {
  int64_t B, H, W, K, D, Dh;
  Element element;
  int capability;  // of the device, 90 for 9.0
  bool backward;   // one launch is then followed by one that adds partial sums
  bool allowed;    // whether it may be one launch

  auto operator<=>(const PathFacts&) const = default;
};

constexpr int kLeastCapability = 80;  // which brought the matrix instructions and asynchronous copies

// Bytes of shared memory that a CTA may have, by the compute capability of the device.
constexpr int shared_limit(int capability) {
  switch (capability) {
    case 80:
    case 87:
      return 163 * 1024;
    case 90:
    case 100:
    case 103:
      return 227 * 1024;
    default:
      return 99 * 1024;  // the least of the supported ones
  }
}

// A launch, of whichever kernel.
struct OneLaunch {
  int64_t ctas;
  int threads, shared_bytes;
  int images;      // that a CTA takes at a time
  int unit_tiles;  // tiles of 16 frequencies that a warp maps at a time
};

struct Path {
  Refusal refusal;   // kNone: one launch
  OneLaunch launch;  // of a call that has too little shared memory, only the bytes it would take
  SinglePlan single;
  HalfFacts half_facts;
  HalfPlan half;

  constexpr bool one_launch() const { return refusal == Refusal::kNone; }
};

// Whether the kernel that computes in 16 bits takes a pass; its error is within bfloat16's rounding, not float16's. The
// others take the kernels that compute in float32.
constexpr bool computes_in_half(Element element, bool backward) { return element == Element::kBfloat16 && !backward; }

constexpr Path choose_path(const PathFacts& f) {
  Path path{};
  const auto refused = [&](Refusal refusal) {
    path.refusal = refusal;
    return path;
  };
  if (!f.allowed) return refused(Refusal::kSwitchedOff);
  if (f.capability < kLeastCapability) return refused(Refusal::kDevice);
  if (f.element == Element::kFloat64) return refused(Refusal::kType);
  const int limit = shared_limit(f.capability);
  if (computes_in_half(f.element, f.backward)) {
    constexpr int kAlignment = 16, kUnlimited = 1 << 30;  // x that has less alignment takes the same path
    path.half_facts = {f.B, f.H, f.W, f.K, f.D, f.Dh, kAlignment, kUnlimited};
    const HalfPlan plan = plan_half(path.half_facts);
    path.launch = {plan.ctas, plan.threads, plan.shared_bytes, 1, plan.quads <= 4 ? 1 : 2};
    path.half_facts.shared_bytes = limit;
    path.half = plan_half(path.half_facts);
    if (plan.tiles == 0) return refused(Refusal::kSizes);
    if (path.half.tiles == 0) return refused(Refusal::kSharedMemory);
    return path;
  }
  path.single = plan_single(f.B, f.H, f.W, f.K, f.D, f.Dh, limit, f.backward);
  const SinglePlan& plan = path.single;
  path.launch = {plan.grid(f.K), plan.threads, plan.shared_bytes, plan.images, 0};
  if (plan.shared_bytes == 0) return refused(Refusal::kSizes);
  if (plan.instance < 0) return refused(Refusal::kSharedMemory);
  path.launch.unit_tiles = single_unit_tiles(kSingleInstances[plan.instance].quads);
  return path;
}

}  // namespace affnet
