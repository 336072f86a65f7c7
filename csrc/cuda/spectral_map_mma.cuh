// The spectral map of float32 on tensor cores: a warp takes 16 frequencies of a block through both layers in registers.
// It reads the spectrum once and writes it once, in place, and meets no other warp once the weights are staged.
//
// Static count of the forward map with ReLU, for 16 frequencies of D = 4 Q channels, in clocks of a multiprocessor of
// an H100; nothing of it is measured on a GPU.
//
//   copying            1024 Q bytes at 4.3 TB/s over 132 multiprocessors        55 Q
//   tensor cores       6 Q^2 mma at 62 % of 1024 multiplications a clock       9.7 Q^2
//   shared memory      2 Q^2 loads of 16 bytes a lane, 171 bytes an mma        8 Q^2
//   instructions       12 for 3 mma, and what a channel takes (sm_90)         35 Q + 6 Q^2
//   plain FMA          its multiplications alone                               16 Q^2
//
// So up to D = 16 the map is as fast as copying, beyond it 1.3 to 1.6 times as fast as plain FMA can be.
#pragma once

#include <algorithm>

#include "mma.cuh"

namespace affnet {

constexpr int kMaxQuads = 10, kMaxVjpQuads = 8;

// Which kernel computes a map of float32: the quads the tensor-core kernel is compiled for, 0 for plain FMA.
//
// Up to four channels are one quad, most of it padding, and plain FMA is as fast as copying. The forward map takes 12
// registers a quad and those of the steps in flight, which ends at 40 channels; the VJP takes 16 and those of its sums,
// and with 40 channels it would spill 600 bytes and leave room for five warps on a multiprocessor. Between the two
// every count of quads of a shipped network has its own instance; 28 and 36 channels, of none, run as 32 and 40.
constexpr int mma_quads(int D, int Dh, bool backward) {
  const int quads = quads_of(std::max(D, Dh));
  if (quads < 2 || quads > (backward ? kMaxVjpQuads : kMaxQuads)) return 0;
  return quads == 7 || quads == 9 ? quads + 1 : quads;
}

// Division by a number that is known before the launch, exact below 2^31.
struct Divisor {
  uint32_t multiplier, shift;

  explicit Divisor(uint32_t divisor) {
    uint32_t log = 0;
    while ((uint64_t{1} << log) < divisor) ++log;
    shift = 31 + log;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }

  AFFNET_DEVICE uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n} * multiplier) >> shift);
  }
};

// Tiles of 16 rows of a block's frequencies, counted through all its units: first those of the columns that stand for
// two of the full spectrum, then the special ones, of which a tile takes eight, each with its conjugate.
struct RowTiling {
  int F, columns, special_columns;  // of a plane; `columns` are the regular ones
  uint32_t regular, special;        // frequencies of a unit
  Divisor by_regular, by_special, by_columns;

  RowTiling(int H, int W)
      : F(W / 2 + 1),
        columns(F - tiling_of(H, W, kTileRows).special_columns),
        special_columns(F - columns),
        regular(static_cast<uint32_t>(H) * columns),
        special(static_cast<uint32_t>(H) * special_columns),
        by_regular(std::max(regular, 1u)),
        by_special(special),
        by_columns(std::max(columns, 1)) {}

  // All frequencies of `units` are fewer than 2^31.
  AFFNET_HOST_DEVICE int regular_tiles(uint32_t units) const {
    return static_cast<int>((units * regular + kTileRows - 1) / kTileRows);
  }
  AFFNET_HOST_DEVICE int tiles(uint32_t units) const {
    return regular_tiles(units) + static_cast<int>((units * special + kTileRows / 2 - 1) / (kTileRows / 2));
  }
};

// The units of block k.
struct BlockUnits {
  int first;
  uint32_t count;

  AFFNET_DEVICE BlockUnits(const MapArguments<float>& a, int k)
      : first((k - static_cast<int>(a.first_unit % a.K) + a.K) % a.K),
        count(first < a.units ? static_cast<uint32_t>(a.units - first - 1) / a.K + 1 : 0) {}
};

// A lane's two rows of a tile.
struct Rows {
  bool special;
  int64_t at[2];  // from the chunk's first number, at channel 0; -1: no such row

  AFFNET_DEVICE Rows(const MapArguments<float>& a, const RowTiling& tiling, const BlockUnits& units, int tile,
                     const Lane& lane) {
    const int regular_tiles = tiling.regular_tiles(units.count);
    special = tile >= regular_tiles;
    if (special) {
      at[0] = at[1] = place(a, tiling, units, static_cast<uint32_t>(tile - regular_tiles) * (kTileRows / 2) + lane.g);
    } else {
      const uint32_t item = static_cast<uint32_t>(tile) * kTileRows + lane.g;
      at[0] = place(a, tiling, units, item);
      at[1] = place(a, tiling, units, item + kTileRows / 2);
    }
  }

  AFFNET_DEVICE int64_t place(const MapArguments<float>& a, const RowTiling& tiling, const BlockUnits& units,
                              uint32_t item) const {
    const uint32_t unit = (special ? tiling.by_special : tiling.by_regular).quotient(item);
    if (unit >= units.count) return -1;
    const uint32_t rest = item - unit * (special ? tiling.special : tiling.regular);
    const uint32_t h = special ? rest >> (tiling.special_columns - 1) : tiling.by_columns.quotient(rest);
    const uint32_t column = rest - h * (special ? tiling.special_columns : tiling.columns);
    const uint32_t w = special ? column * (tiling.F - 1) : column + 1;
    return (units.first + int64_t{unit} * a.K) * a.D * a.H * tiling.F + int64_t{h} * tiling.F + w;
  }

  // One channel, scaled; zero where there is no row.
  AFFNET_DEVICE Quad load(const Complex<float>* channel, float scale, bool there) const {
    Quad value;
    const float im_scale[2] = {scale, special ? -scale : scale};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      value.row[r] = there && at[r] >= 0 ? channel[at[r]] : Complex<float>{0.f, 0.f};
      value.row[r].re *= scale;
      value.row[r].im *= im_scale[r];
    }
    return value;
  }

  // Both rows, or the Hermitian part.
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

// The parameters of a block in shared memory, as a warp reads them.
template <int kQuads>
struct Layers {
  static constexpr int kBiasBytes = kQuads * kQuadChannels * static_cast<int>(sizeof(Complex<float>));
  static constexpr int kBytes = 2 * (Weights<kQuads>::kBytes + kBiasBytes);
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
      const bool there = c < channels;
      shared_store(to + static_cast<uint32_t>(c * sizeof(Complex<float>)),
                   Complex<float>{there ? from[0] : 0.f, there ? from[int64_t{K} * channels] : 0.f});
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

constexpr int kForwardWarps = 4;

// CTAs that a multiprocessor holds at once: as many as there are registers for, but for a few that are spilt.
template <int kQuads>
constexpr int kForwardCtas = kQuads == 2   ? 7
                             : kQuads == 3 ? 5
                             : kQuads == 4 ? 4
                             : kQuads <= 6 ? 3
                                           : 2;

// The CTAs that share a block whose work is `tiles` of a CTA. A grid is as large as an H100 holds at once, so that
// parameters are staged once, and no smaller than gives each CTA as many tiles as the next. It is not taken from the
// device: sums are the same on every GPU.
inline int64_t runs_of_block(int64_t tiles, int K, int ctas_a_multiprocessor) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t most = std::max<int64_t>(1, kMultiprocessors * ctas_a_multiprocessor / K);
  const int64_t tiles_a_run = std::max<int64_t>(1, (tiles + most - 1) / most);
  return std::max<int64_t>(1, (tiles + tiles_a_run - 1) / tiles_a_run);
}

// X := map(X). CTA (k, run): its warps take the tiles of block k in turn with those of the other runs.
template <int kQuads>
AFFNET_KERNEL(32 * kForwardWarps, kForwardCtas<kQuads>)
map_mma_kernel(MapArguments<float> a, RowTiling tiling) {
  const int k = static_cast<int>(cta_index()) / static_cast<int>(a.runs);
  const Layers<kQuads> layers;
  layers.stage(a, k);
  barrier();

  const Lane lane;
  const BlockUnits units(a, k);
  const int64_t plane = int64_t{a.H} * tiling.F;
  const int tiles = tiling.tiles(units.count), runs = static_cast<int>(a.runs);
  const int first = static_cast<int>(cta_index()) % runs * kForwardWarps + thread_index() / 32;
  for (int tile = first; tile < tiles; tile += runs * kForwardWarps) {
    warp_barrier();  // or the compiler reads weights before the loop, and spills them
    const Rows rows(a, tiling, units, tile, lane);
    Complex<float>* const channels = a.X + lane.t * plane;  // of this lane: every fourth
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

}  // namespace affnet
