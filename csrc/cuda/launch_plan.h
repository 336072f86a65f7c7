// How one call runs on a CUDA device: the kernel of the spectral map, its grid, threads and shared memory, how much of
// the tensor is in memory at once, and how many partial sums the parameter gradients have.
//
// All of it is a pure function of the call's facts and includes neither torch nor CUDA, so that the launcher
// (mixer.cu), the emulated kernels (tests/cuda_host) and their tests follow one plan. The lists of compiled kernel
// instances are here too; the compile check instantiates the same lists.
//
// Words of the CUDA code:
//   block-image   one channel block of one image: D planes of H x W. A call has B * K of them, block index fastest.
//   tile          the frequencies of one block that a CTA (plain FMA) or a warp (tensor cores) maps together.
//   chunk         consecutive block-images that are transformed and mapped before the next ones are started.
//   partial sums  parameter gradients of one block that one CTA has summed; a second kernel adds them in order.
//   special       a column of the half spectrum that is its own conjugate, w = 0 or W / 2; the others are regular and
//                 stand for two columns of the full spectrum.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <utility>

#include "hermitian_weight.h"
#include "host_device.h"
#include "limits.h"

// The compiled instances; -D may shorten a list, as tests do to compile one instance only.
#ifndef AFFNET_FMA_TILES
#define AFFNET_FMA_TILES 64, 32, 16, 8, 4  // frequencies of a tile, largest first
#endif
#ifndef AFFNET_MMA_QUADS
#define AFFNET_MMA_QUADS 2, 3, 4, 5, 6, 8, 10  // quads of channels, smallest first
#endif

namespace affnet {

using FmaTiles = std::integer_sequence<int, AFFNET_FMA_TILES>;
using MmaQuads = std::integer_sequence<int, AFFNET_MMA_QUADS>;

constexpr int kWarpThreads = 32;

// Numbers of the parameter gradients of one block: dw1 [2, D, Dh], db1 [2, Dh], dw2 [2, Dh, D], db2 [2, D].
AFFNET_HD constexpr int64_t partial_size(int D, int Dh) { return 4 * int64_t{D} * Dh + 2 * (D + Dh); }

// Special columns of the half spectrum: w = 0, and w = W / 2 if W is even.
AFFNET_HD constexpr int special_columns(int W) {
  return hermitian_weight(0, W) + (W > 1 && hermitian_weight(W / 2, W) == 1 ? 1 : 0);
}

// ---- Plain FMA: a CTA maps one tile at a time, a thread computes kThreadOutputs channels at two of its frequencies.

constexpr int kThreadOutputs = 4;

// An upper bound on the threads of a launch: it tells the compiler how many registers a thread may have.
template <typename T, bool kBackward>
constexpr int kMaxThreads = sizeof(T) == 4 ? (kBackward ? 384 : 640) : (kBackward ? 256 : 384);

// The smallest tile that a kernel is compiled for: the float32 forward map never needs one of 4.
template <typename T, bool kBackward>
constexpr int kMinTile = sizeof(T) == 4 && !kBackward ? 8 : 4;

AFFNET_HD constexpr int padded_outputs(int channels) {
  return (channels + kThreadOutputs - 1) / kThreadOutputs * kThreadOutputs;
}

// Rows of a weight matrix that are staged in shared memory at a time: 128 bytes of each column, or half of that with
// the smallest tile, which is for the widest blocks.
AFFNET_HD constexpr int staged_rows(int tile, int complex_bytes) { return (tile < 8 ? 64 : 128) / complex_bytes; }

// Bytes of the staged weights, which come first in shared memory.
AFFNET_HD constexpr int staged_bytes(int D, int Dh, int tile, int complex_bytes) {
  return staged_rows(tile, complex_bytes) * padded_outputs(D > Dh ? D : Dh) * complex_bytes;
}

// The tiles of one block-image: first those of the regular columns, then the special ones, which hold half as many
// frequencies because each is stored beside its conjugate.
struct Tiling {
  int H, F, special_columns, regular_tiles, tiles;
};

AFFNET_HD constexpr Tiling tiling_of(int H, int W, int tile) {
  const int F = W / 2 + 1, special = special_columns(W);
  const int regular_tiles = static_cast<int>((int64_t{H} * (F - special) + tile - 1) / tile);
  return {H, F, special, regular_tiles, regular_tiles + (H * special + tile / 2 - 1) / (tile / 2)};
}

// ---- Tensor cores: a warp maps 16 frequencies (rows of a matrix product), channels come in quads.

constexpr int kQuadChannels = 4, kTileRows = 16;
constexpr int kMaxVjpQuads = 8;

constexpr int quads_of(int channels) { return (channels + kQuadChannels - 1) / kQuadChannels; }

// The compiled instance for a map of float32: its quads, or 0 where plain FMA computes the map.
//
// Up to four channels are one quad, most of it padding, and plain FMA is as fast as copying. The forward map takes 12
// registers per quad and those of the products in flight, which ends at 40 channels; the VJP takes 16 and those of its
// sums: with 40 channels it would spill 600 bytes and leave room for five warps per multiprocessor. Every number of
// quads of a released network has its own instance; 28 and 36 channels, of none, run as 32 and 40.
constexpr int mma_quads(int D, int Dh, bool backward) {
  const int quads = quads_of(std::max(D, Dh));
  if (quads < 2) return 0;
  int found = 0;
  [&]<int... kQuads>(std::integer_sequence<int, kQuads...>) {
    ((found = found == 0 && kQuads >= quads ? kQuads : found), ...);
  }(MmaQuads{});
  return backward && found > kMaxVjpQuads ? 0 : found;
}

// Bytes of a weight matrix (each complex number split in two TF32 parts), and of both layers with their biases.
constexpr int mma_weight_bytes(int quads) { return quads * quads * kQuadChannels * kQuadChannels * 16; }
constexpr int mma_bias_bytes(int quads) { return quads * kQuadChannels * 8; }
constexpr int mma_layer_bytes(int quads) { return 2 * (mma_weight_bytes(quads) + mma_bias_bytes(quads)); }

constexpr int kForwardWarps = 4;

// CTAs per multiprocessor: as many as there are registers for, accepting a few that are spilt.
constexpr int mma_forward_ctas(int quads) {
  return quads == 2 ? 7 : quads == 3 ? 5 : quads == 4 ? 4 : quads <= 6 ? 3 : 2;
}

// How a CTA divides the gradient of a weight matrix. An octet is eight channels: of a product's result, 16 rows (their
// real and their imaginary parts) or eight columns. A warp has one octet of rows, all columns, and one part of the
// tile's frequencies.
struct VjpShape {
  int octets, parts, warps;
  int ctas;    // per multiprocessor
  int rows;    // frequencies of all the CTA's warps
  int stride;  // of a row in shared memory: 4 mod 8 numbers, so that neither way through has bank conflicts
  int operand_bytes;
  int shared_bytes;
};

constexpr VjpShape vjp_shape(int quads) {
  VjpShape shape{};
  shape.octets = (quads + 1) / 2;
  shape.parts = 4 / shape.octets;
  shape.warps = shape.octets * shape.parts;
  shape.ctas = quads == 2 ? 4 : quads <= 4 ? 3 : 2;
  shape.rows = shape.warps * kTileRows;
  shape.stride = 8 * shape.octets + 4;
  shape.operand_bytes = shape.rows * shape.stride * 8;
  shape.shared_bytes = mma_layer_bytes(quads) + 2 * shape.operand_bytes;
  return shape;
}

// Warp tiles of so many regular and special frequencies of one block. Special ones are stored beside their conjugates,
// so a tile holds half as many.
AFFNET_HD constexpr uint32_t regular_tiles(uint32_t frequencies) { return (frequencies + kTileRows - 1) / kTileRows; }
AFFNET_HD constexpr uint32_t special_tiles(uint32_t frequencies) {
  return (frequencies + kTileRows / 2 - 1) / (kTileRows / 2);
}

// The CTAs that share a block whose work is `tiles` CTA tiles: no more than an H100 holds at once, so that parameters
// are staged once, and no more than keeps their loads equal. The device is not asked, so that sums are the same on
// every GPU.
constexpr int64_t mma_ctas_per_block(int64_t tiles, int64_t K, int ctas_per_multiprocessor) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t most = std::max<int64_t>(1, kMultiprocessors * ctas_per_multiprocessor / K);
  const int64_t tiles_per_cta = std::max<int64_t>(1, (tiles + most - 1) / most);
  return std::max<int64_t>(1, (tiles + tiles_per_cta - 1) / tiles_per_cta);
}

// ---- The plan

// What is known of a call before it runs.
struct CallFacts {
  int64_t B, H, W, K, D, Dh;
  int64_t workspace_bytes;  // for the spectra of a chunk
  int real_bytes;           // 8: computed in float64, 4: in float32
  bool converted;           // x has another type than the one computed in
  bool backward;
  bool parameter_grads;
  bool tensor_cores;  // whether they may be used

  auto operator<=>(const CallFacts&) const = default;
};

struct LaunchPlan {
  int quads;  // of the tensor-core kernel; 0: plain FMA
  int tile;   // frequencies of a tile
  int threads;
  int shared_bytes;
  int64_t chunk;                 // block-images; the last chunk may be smaller
  int64_t ctas_per_block_image;  // of the FMA forward kernel, else 0
  int64_t ctas_per_block;        // of the others; in the backward pass also the partial sums of a block

  auto operator<=>(const LaunchPlan&) const = default;

  int64_t ctas(int64_t K, int64_t block_images) const {
    return ctas_per_block_image > 0 ? ctas_per_block_image * block_images : ctas_per_block * K;
  }
};

// Bytes of the spectra of one block-image.
constexpr int64_t spectrum_bytes(const CallFacts& f) { return f.D * f.H * (f.W / 2 + 1) * 2 * f.real_bytes; }

// As many block-images as the workspace holds, at least one, in chunks of nearly equal size.
constexpr int64_t chunk_of(const CallFacts& f) {
  const int64_t staged = f.converted ? f.D * f.H * f.W * f.real_bytes : 0;
  const int64_t bytes = (f.backward ? 2 : 1) * spectrum_bytes(f) + staged;
  // Kernels count a chunk's frequencies in 32 bits, and so does the grid count CTAs, of which each has two or more.
  const int64_t countable = (int64_t{1} << 30) / (f.H * (f.W / 2 + 1));
  const int64_t block_images = f.B * f.K;
  const int64_t most = std::clamp<int64_t>(std::min(f.workspace_bytes / bytes, countable), 1, block_images);
  const int64_t chunks = (block_images + most - 1) / most;
  return (block_images + chunks - 1) / chunks;
}

// Partial sums of a block in the backward pass, of which `most` are useful: as many as their memory allows. The device
// is not asked, so that sums are the same on every GPU.
constexpr int64_t partial_sums(const CallFacts& f, int64_t most) {
  constexpr int64_t kPartialBytes = int64_t{32} << 20;
  if (!f.parameter_grads) return most;
  const int64_t bytes = f.K * partial_size(static_cast<int>(f.D), static_cast<int>(f.Dh)) * f.real_bytes;
  return std::clamp<int64_t>(kPartialBytes / bytes, 1, most);
}

// Block-images of one block in a chunk, at most.
constexpr int64_t images_per_block(const CallFacts& f, int64_t chunk) { return (chunk + f.K - 1) / f.K; }

// Bytes of shared memory of the FMA kernel: staged weights, and rows of X and O1, backward also of P1 and dP2.
constexpr int fma_shared_bytes(const CallFacts& f, int tile) {
  const int D = static_cast<int>(f.D), Dh = static_cast<int>(f.Dh), complex_bytes = 2 * f.real_bytes;
  const int rows = (f.backward ? 2 : 1) * (D + Dh);
  return staged_bytes(D, Dh, tile, complex_bytes) + rows * (tile + 1) * complex_bytes;
}

// The largest tile that leaves room for several CTAs on a multiprocessor, else the largest that fits.
constexpr int choose_fma_tile(const CallFacts& f) {
  constexpr int kComfortableBytes = 48 * 1024;
  int chosen = 0;
  [&]<int... kTiles>(std::integer_sequence<int, kTiles...>) {
    const auto fits = [&](int tile) {
      return fma_shared_bytes(f, tile) <= (tile > 8 ? kComfortableBytes : kMaxSharedBytes);
    };
    ((chosen = chosen == 0 && fits(kTiles) ? kTiles : chosen), ...);
  }(FmaTiles{});
  return chosen;
}

constexpr LaunchPlan plan_fma(const CallFacts& f, int tile) {
  constexpr int64_t kBackwardCtas = 512;  // over all blocks
  const int outputs = padded_outputs(static_cast<int>(std::max(f.D, f.Dh)));
  const int threads = outputs / kThreadOutputs * (tile / 2);
  const int64_t tiles = tiling_of(static_cast<int>(f.H), static_cast<int>(f.W), tile).tiles;
  LaunchPlan plan{};
  plan.tile = tile;
  plan.threads = (threads + kWarpThreads - 1) / kWarpThreads * kWarpThreads;
  plan.shared_bytes = fma_shared_bytes(f, tile);
  plan.chunk = chunk_of(f);
  if (f.backward) {
    const int64_t most = std::clamp<int64_t>(kBackwardCtas / f.K, 1, images_per_block(f, plan.chunk) * tiles);
    plan.ctas_per_block = partial_sums(f, most);
  } else {
    plan.ctas_per_block_image = tiles;
  }
  return plan;
}

constexpr LaunchPlan plan_mma(const CallFacts& f, int quads) {
  const VjpShape vjp = vjp_shape(quads);
  const int warps = f.backward ? vjp.warps : kForwardWarps;
  LaunchPlan plan{};
  plan.quads = quads;
  plan.tile = kTileRows;
  plan.threads = warps * kWarpThreads;
  plan.shared_bytes = f.backward ? vjp.shared_bytes : mma_layer_bytes(quads);
  plan.chunk = chunk_of(f);
  const int64_t rows = images_per_block(f, plan.chunk) * f.H;
  const auto special = static_cast<uint32_t>(rows * special_columns(static_cast<int>(f.W)));
  const auto regular = static_cast<uint32_t>(rows * (f.W / 2 + 1)) - special;
  const int64_t tiles = regular_tiles(regular) + special_tiles(special);
  const int ctas = f.backward ? vjp.ctas : mma_forward_ctas(quads);
  plan.ctas_per_block = mma_ctas_per_block((tiles + warps - 1) / warps, f.K, ctas);
  if (f.backward) plan.ctas_per_block = partial_sums(f, plan.ctas_per_block);
  return plan;
}

constexpr LaunchPlan plan_launch(const CallFacts& f) {
  const bool may_use_tensor_cores = f.tensor_cores && f.real_bytes == 4;
  const int quads = may_use_tensor_cores ? mma_quads(static_cast<int>(f.D), static_cast<int>(f.Dh), f.backward) : 0;
  return quads > 0 ? plan_mma(f, quads) : plan_fma(f, choose_fma_tile(f));
}

}  // namespace affnet
