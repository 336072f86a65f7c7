// How the one-launch kernel for bfloat16 tensors runs a call: its instance, threads, shared memory and grid, as a pure
// function of the call's facts. It includes neither torch nor CUDA; the launcher, the emulated kernel and the tests
// share it.
//
// A CTA holds the D planes of one block of one image, a plane in 16-bit numbers, and the spectra that they have:
//
//   spectrum   rows of float16: row 2 d is the real part of channel d's half spectrum, row 2 d + 1 the imaginary part.
//              A slot is a column: ((sign * tiles + j) * 8 tiles + k) * 8 + w % 8 for frequency (+-k, w), j = w / 8;
//              sign 0 is +k, 1 is -k; k and w count to half of the length (dft_table.h). The slots of k = 0 with sign 1
//              hold row H / 2, those of w = 0 with sign 1 hold column W / 2; the mirrored frequencies of these two
//              columns, (-k, 0) and (-k, W / 2), come last, 8 tiles each.
//   tiles      of 16 rows and columns that a plane is padded to, its larger side: 1, 2 or 3
//   quads      of four channels that D is padded to
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../../activations.h"
#include "../../host_device.h"
#include "dft_table.h"

namespace affnet {

struct HalfArguments {
  const uint16_t* x;                 // [B, K D, H, W], bfloat16
  uint16_t* y;                       // like x
  const float* w1;                   // [2, K, D, D]
  const float* b1;                   // [2, K, D]
  const float* w2;                   // [2, K, D, D]
  const float* b2;                   // [2, K, D]
  const uint32_t* height_constants;  // of length H and of length W: the table at dft_offset(length)
  const uint32_t* width_constants;
  int B, K, D, H, W;
  int granule;   // bytes of a row that are copied at a time: 16, 8, 4 or 2
  float root;    // sqrt(H W): no frequency of a plane is larger than that times its largest element
  float spread;  // no intermediate result of the inverse is larger than that times the largest masked frequency
  float threshold;
  Activation activation;
};

// What is known of a call before it runs.
struct HalfFacts {
  int64_t B, H, W, K, D, Dh;
  int64_t alignment;     // that x and y both have, in bytes
  int64_t shared_bytes;  // that a CTA may have on the device

  auto operator<=>(const HalfFacts&) const = default;
};

struct HalfPlan {
  int tiles, quads, whole;  // the instance, see half_whole; tiles = 0 if none takes the call
  int threads, shared_bytes, granule;
  int64_t ctas;

  auto operator<=>(const HalfPlan&) const = default;
};

// Where everything is in shared memory, in bytes.
struct HalfLayout {
  uint32_t slots, stride;       // of a row of the spectrum; an odd multiple of 16 bytes, so that there are no conflicts
  uint32_t plane_pitch, plane;  // of a row and of a whole plane of x
  uint32_t x, staging, weights, biases, sums, magnitudes, exponents, bytes;
};

constexpr int kHalfWarpThreads = 32;
// Whether the planes fill their tiles: y may then be where x is in shared memory, and rows are copied 16 bytes at a
// time. 48 x 48 is no length of the table.
constexpr bool half_whole(int tiles, int64_t H, int64_t W, int granule) {
  return tiles < 3 && H == 16 * tiles && W == 16 * tiles && granule == 16;
}

// A weight matrix: for each quad of outputs, a word for each lane and each quad of inputs.
AFFNET_HD constexpr uint32_t half_weight_bytes(int quads) { return static_cast<uint32_t>(quads * quads * 128); }

AFFNET_HD constexpr HalfLayout half_layout(int tiles, int quads, int D, int warps, bool whole) {
  HalfLayout at{};
  at.slots = static_cast<uint32_t>(128 * tiles * tiles + 16 * tiles);
  at.stride = 2 * at.slots + 16;
  at.plane_pitch = static_cast<uint32_t>(32 * tiles);
  at.plane = at.plane_pitch * static_cast<uint32_t>(16 * tiles);
  at.x = static_cast<uint32_t>(8 * quads) * at.stride;
  at.staging = at.x + static_cast<uint32_t>(D) * at.plane;  // a plane of y for each warp, if x has padding to keep
  at.weights = at.staging + (whole ? 0 : static_cast<uint32_t>(warps) * at.plane);
  at.biases = at.weights + 2 * half_weight_bytes(quads);
  at.sums = at.biases + static_cast<uint32_t>(2 * quads * 64);
  at.magnitudes = at.sums + static_cast<uint32_t>(quads * 64);
  at.exponents = at.magnitudes + static_cast<uint32_t>(quads * 16);
  at.bytes = at.exponents + static_cast<uint32_t>(quads * 16);
  return at;
}

AFFNET_HD constexpr int half_warps(int tiles, int quads) {
  return tiles == 1 || (tiles == 2 && quads <= 4) ? 4 : tiles == 2 && quads <= 6 ? 6 : 8;
}

// CTAs on a multiprocessor that the registers of an instance are limited for: on 9.0 and 10.0 none of a
// released map spills.
AFFNET_HD constexpr int half_ctas(int tiles, int quads) {
  if (tiles == 1) return quads <= 3 ? 4 : quads <= 6 ? 3 : 2;
  return tiles == 2 && quads <= 4 ? 3 : tiles == 2 && quads <= 6 ? 2 : 1;
}

// The compiled numbers of quads; 28 and 36 channels, of no released network, run as 32 and 40. With three tiles more
// than six quads would take more shared memory than any device has. -D may shorten the lists, as tests do.
#ifndef AFFNET_HALF_QUADS
#define AFFNET_HALF_QUADS 2, 3, 4, 5, 6, 8, 10
#define AFFNET_HALF_QUADS_3 2, 3, 4, 5, 6
#endif
template <int kTiles>
struct HalfQuadsOf {
  using Type = std::integer_sequence<int, AFFNET_HALF_QUADS>;
};
template <>
struct HalfQuadsOf<3> {
  using Type = std::integer_sequence<int, AFFNET_HALF_QUADS_3>;
};
template <int kTiles>
using HalfQuads = typename HalfQuadsOf<kTiles>::Type;

template <int... kQuads>
constexpr int half_quads(int64_t D, std::integer_sequence<int, kQuads...>) {
  int found = 0;
  ((found = found == 0 && D <= 4 * kQuads ? kQuads : found), ...);
  return D > 4 ? found : 0;
}

constexpr int half_quads(int64_t D, int tiles) {
  return tiles == 3 ? half_quads(D, HalfQuads<3>{}) : half_quads(D, HalfQuads<2>{});
}

// The largest number of bytes, 2 to 16, that divides a row and the alignment.
constexpr int half_granule(int64_t W, int64_t alignment) {
  int granule = 16;
  while (2 * W % granule != 0 || alignment % granule != 0) granule /= 2;
  return granule;
}

// CTAs: a multiple of K, each with the images that fall to its place. No more than an H100 holds at once, so that
// weights are loaded once, and no more than keeps their loads equal. The device is not asked.
constexpr int64_t half_grid(int64_t B, int64_t K, int64_t ctas_per_multiprocessor) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t most = std::max<int64_t>(1, kMultiprocessors * ctas_per_multiprocessor / K);
  const int64_t images = (B + most - 1) / most;
  return K * ((B + images - 1) / images);
}

// The plan of a call; tiles = 0 if the kernel does not take it.
constexpr HalfPlan plan_half(const HalfFacts& f) {
  constexpr int64_t kSharedPerMultiprocessor = 227 * 1024, kReserved = 1024;
  HalfPlan plan{};
  if (f.B < 1 || f.B > 1 << 30 || f.K < 1 || f.K > 1 << 16 || f.D != f.Dh || f.alignment % 2 != 0) return plan;
  if (f.H > 48 || f.W > 48 || dft_offset(static_cast<int>(f.H)) < 0 || dft_offset(static_cast<int>(f.W)) < 0)
    return plan;
  const int tiles = dft_tiles(static_cast<int>(std::max(f.H, f.W)));
  const int quads = half_quads(f.D, tiles), warps = half_warps(tiles, quads);
  if (quads == 0) return plan;
  plan.granule = half_granule(f.W, f.alignment);
  if (2 * f.W / plan.granule > kHalfWarpThreads) return HalfPlan{};  // a warp copies whole rows
  plan.whole = half_whole(tiles, f.H, f.W, plan.granule);
  const HalfLayout layout = half_layout(tiles, quads, static_cast<int>(f.D), warps, plan.whole);
  if (layout.bytes > f.shared_bytes) return HalfPlan{};
  plan.tiles = tiles, plan.quads = quads;
  plan.threads = warps * kHalfWarpThreads;
  plan.shared_bytes = static_cast<int>(layout.bytes);
  const int64_t resident = kSharedPerMultiprocessor / (layout.bytes + kReserved);
  plan.ctas = half_grid(f.B, f.K, std::clamp<int64_t>(resident, 1, half_ctas(tiles, quads)));
  return plan;
}

// The numbers of an argument that follow from the shape and the plan.
inline void set_half_shape(HalfArguments& a, const HalfFacts& f, const HalfPlan& plan, const uint32_t* table) {
  a.B = static_cast<int>(f.B), a.K = static_cast<int>(f.K), a.D = static_cast<int>(f.D);
  a.H = static_cast<int>(f.H), a.W = static_cast<int>(f.W);
  a.granule = plan.granule;
  a.height_constants = table + dft_offset(a.H), a.width_constants = table + dft_offset(a.W);
  const auto H = static_cast<double>(f.H);
  a.root = static_cast<float>(std::sqrt(H * static_cast<double>(f.W)));
  // A combination of two frequencies, then a row of the inverse: sqrt(2 / H) times at most H / 2 - 1 sums of a cosine
  // and a sine, and two more numbers. One per mille for rounding.
  a.spread = static_cast<float>(2 * 1.001 * (H + 1) / std::sqrt(H));
}

}  // namespace affnet
