// The spectral map of float32 on tensor cores: a warp takes 16 frequencies of a block through both layers in registers.
// It reads the spectrum once and writes it once, in place; once the weights are staged, warps are independent.
//
// Predicted cost of the forward map with ReLU, for 16 frequencies of D = 4 Q channels, in clocks of one multiprocessor
// of an H100, from counting instructions; not measured on a GPU:
//
//   copying            1024 Q bytes at 4.3 TB/s over 132 multiprocessors        55 Q
//   tensor cores       6 Q^2 mma at 62 % of 1024 multiplications per clock     9.7 Q^2
//   shared memory      2 Q^2 loads of 16 bytes per lane, 171 bytes per mma     8 Q^2
//   instructions       12 per 3 mma, and those of each channel (sm_90)        35 Q + 6 Q^2
//   plain FMA          its multiplications alone                               16 Q^2
//
// So up to D = 16 the map should be as fast as copying, and beyond that 1.3 to 1.6 times as fast as plain FMA can be.
#pragma once

#include <bit>

#include "mma.cuh"

namespace affnet {

// Division of numbers below 2^31 by one that is known before the launch: a multiplication and a shift.
struct Divisor {
  uint32_t multiplier, shift;

  explicit Divisor(uint32_t divisor) {
    shift = 31 + static_cast<uint32_t>(std::bit_width(divisor - 1));
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }

  AFFNET_DEVICE uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n} * multiplier) >> shift);
  }
};

// The warp tiles of one block, counted through all its block-images: first the regular frequencies, 16 per tile, then
// the special ones, eight per tile and each with its conjugate.
struct RowTiling {
  int F, columns, special_columns;  // of a plane; `columns` are the regular ones
  uint32_t regular, special;        // frequencies of a block-image
  Divisor by_regular, by_special, by_columns;

  RowTiling(int H, int W)
      : F(W / 2 + 1),
        columns(F - affnet::special_columns(W)),
        special_columns(F - columns),
        regular(static_cast<uint32_t>(H) * columns),
        special(static_cast<uint32_t>(H) * special_columns),
        by_regular(std::max(regular, 1u)),
        by_special(special),
        by_columns(std::max(columns, 1)) {}

  // Tiles of that many block-images, which have fewer than 2^31 frequencies.
  AFFNET_DEVICE int regular_tiles(uint32_t images) const {
    return static_cast<int>(affnet::regular_tiles(images * regular));
  }
  AFFNET_DEVICE int tiles(uint32_t images) const {
    return regular_tiles(images) + static_cast<int>(special_tiles(images * special));
  }
};

// The block-images of block k in a chunk: every K-th.
struct BlockImages {
  int first;
  uint32_t count;

  AFFNET_DEVICE BlockImages(const MapArguments<float>& a, int k)
      : first((k - static_cast<int>(a.first % a.K) + a.K) % a.K),
        count(first < a.block_images ? static_cast<uint32_t>(a.block_images - first - 1) / a.K + 1 : 0) {}
};

// A lane's two rows of a tile. In a special tile the second is the conjugate of the first.
struct Rows {
  bool special;
  int64_t at[2];  // offset in the chunk's spectrum at channel 0, -1 beyond the last row

  AFFNET_DEVICE Rows(const MapArguments<float>& a, const RowTiling& tiling, const BlockImages& images, int tile,
                     const Lane& lane) {
    const int regular_tiles = tiling.regular_tiles(images.count);
    special = tile >= regular_tiles;
    if (special) {
      at[0] = at[1] =
          offset_of(a, tiling, images, static_cast<uint32_t>(tile - regular_tiles) * (kTileRows / 2) + lane.g);
    } else {
      const uint32_t item = static_cast<uint32_t>(tile) * kTileRows + lane.g;
      at[0] = offset_of(a, tiling, images, item);
      at[1] = offset_of(a, tiling, images, item + kTileRows / 2);
    }
  }

  AFFNET_DEVICE int64_t offset_of(const MapArguments<float>& a, const RowTiling& tiling, const BlockImages& images,
                                  uint32_t item) const {
    const uint32_t image = (special ? tiling.by_special : tiling.by_regular).quotient(item);
    if (image >= images.count) return -1;
    const uint32_t rest = item - image * (special ? tiling.special : tiling.regular);
    const uint32_t h = special ? rest >> (tiling.special_columns - 1) : tiling.by_columns.quotient(rest);
    const uint32_t column = rest - h * (special ? tiling.special_columns : tiling.columns);
    const uint32_t w = special ? column * (tiling.F - 1) : column + 1;
    return (images.first + int64_t{image} * a.K) * a.D * a.H * tiling.F + int64_t{h} * tiling.F + w;
  }

  // One channel, scaled; zero if `exists` is false or the row is beyond the last one.
  AFFNET_DEVICE Quad load(const Complex<float>* channel, float scale, bool exists) const {
    Quad value;
    const float im_scale[2] = {scale, special ? -scale : scale};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      value.row[r] = exists && at[r] >= 0 ? channel[at[r]] : Complex<float>{0.f, 0.f};
      value.row[r].re *= scale;
      value.row[r].im *= im_scale[r];
    }
    return value;
  }

  // Stores both rows, or their Hermitian part in a special tile.
  AFFNET_DEVICE void store(const Quad& value, Complex<float>* channel, float scale) const {
    const Complex<float>&a = value.row[0], &b = value.row[1];
    if (special) {
      const float half = 0.5f * scale;
      if (at[0] >= 0) channel[at[0]] = {half * (a.re + b.re), half * (a.im - b.im)};
      return;
    }
    if (at[0] >= 0) channel[at[0]] = {scale * a.re, scale * a.im};
    if (at[1] >= 0) channel[at[1]] = {scale * b.re, scale * b.im};
  }
};

// The parameters of a block in shared memory.
template <int kQuads>
struct Layers {
  static constexpr int kBiasBytes = mma_bias_bytes(kQuads);
  static_assert(kBiasBytes == kQuads * kQuadChannels * static_cast<int>(sizeof(Complex<float>)));
  static constexpr uint32_t kB1 = 2 * Weights<kQuads>::kBytes, kB2 = kB1 + kBiasBytes;
  Weights<kQuads> w1{0}, w2{Weights<kQuads>::kBytes};

  AFFNET_DEVICE void stage(const MapArguments<float>& a, int k) const {
    const int64_t imaginary = int64_t{a.K} * a.D * a.Dh;
    w1.stage(Matrix<float>(a.w1, imaginary, k, a.D, a.Dh));
    w2.stage(Matrix<float>(a.w2, imaginary, k, a.Dh, a.D));
    stage_bias(kB1, a.b1, k, a.K, a.Dh);
    stage_bias(kB2, a.b2, k, a.K, a.D);
  }

  AFFNET_DEVICE static void stage_bias(uint32_t to, const float* bias, int k, int K, int channels) {
    for (int c = thread_index(); c < kQuads * kQuadChannels; c += thread_count()) {
      const float* const from = bias + int64_t{k} * channels + c;
      const bool exists = c < channels;
      shared_store(to + static_cast<uint32_t>(c * sizeof(Complex<float>)),
                   Complex<float>{exists ? from[0] : 0.f, exists ? from[int64_t{K} * channels] : 0.f});
    }
  }

  AFFNET_DEVICE static void start(Quad (&acc)[kQuads], uint32_t bias, const Lane& lane) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const auto b = shared_load<Complex<float>>(
          bias + static_cast<uint32_t>((j * kQuadChannels + lane.t) * sizeof(Complex<float>)));
      acc[j] = {{b, b}};
    }
  }
};

template <Activation kActivation>
AFFNET_DEVICE Quad activated(const Quad& p) {
  return {{{activate<kActivation>(p.row[0].re), activate<kActivation>(p.row[0].im)},
           {activate<kActivation>(p.row[1].re), activate<kActivation>(p.row[1].im)}}};
}

AFFNET_DEVICE Quad activated(const Quad& p, Activation activation) {
  return with_activation(activation, [&](auto a) { return activated<decltype(a)::value>(p); });
}

// X := map(X). The warps of the ctas_per_block CTAs of a block take its tiles in turn.
template <int kQuads>
AFFNET_KERNEL(kWarpThreads* kForwardWarps, mma_forward_ctas(kQuads))
map_mma_kernel(MapArguments<float> a, RowTiling tiling) {
  const int ctas = static_cast<int>(a.ctas_per_block), k = static_cast<int>(cta_index()) / ctas;
  const Layers<kQuads> layers;
  layers.stage(a, k);
  barrier();

  const Lane lane;
  const BlockImages images(a, k);
  const int64_t plane = int64_t{a.H} * tiling.F;
  const int tiles = tiling.tiles(images.count);
  const int first = static_cast<int>(cta_index()) % ctas * kForwardWarps + thread_index() / 32;
  for (int tile = first; tile < tiles; tile += ctas * kForwardWarps) {
    warp_barrier();  // else the compiler hoists loads of weights out of the loop and spills them
    const Rows rows(a, tiling, images, tile, lane);
    Complex<float>* const channels = a.X + lane.t * plane;  // a lane has every fourth
    Quad X[kQuads], P1[kQuads], M[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int d = kQuadChannels * q;
      X[q] = rows.load(channels + d * plane, a.scale, d + lane.t < a.D);
    }
    layers.start(P1, layers.kB1, lane);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) add_quad<kQuads, false>(P1, X[q], q, layers.w1, lane);
    layers.start(M, layers.kB2, lane);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      add_quad<kQuads, false>(M, activated(P1[q], a.activation), q, layers.w2, lane);
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int d = kQuadChannels * q;
      Quad Y;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Complex<float> x = X[q].row[r];
        const Complex<float> m{soft_shrink(M[q].row[r].re, a.threshold), soft_shrink(M[q].row[r].im, a.threshold)};
        Y.row[r] = {m.re * x.re - m.im * x.im, m.re * x.im + m.im * x.re};
      }
      if (d + lane.t < a.D) rows.store(Y, channels + d * plane, a.scale);
    }
  }
}

using MmaKernel = void (*)(MapArguments<float>, RowTiling);

// The kernel of a plan that uses tensor cores; defined in spectral_map_mma.cu.
MmaKernel mma_kernel(const LaunchPlan& plan, bool backward);

}  // namespace affnet
