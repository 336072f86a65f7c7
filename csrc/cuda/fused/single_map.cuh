// The mask and its product with the spectrum, for units of 16 or 32 frequencies of a warp, on tensor cores at float32
// accuracy; in place in the complex planes. mma.cuh says how numbers lie in registers.
#pragma once

#include "../device_math.h"
#include "single_rows.cuh"

namespace affnet {

// A right operand of a warp, as it lies in shared memory: what a lane needs is one load of 16 bytes.
struct alignas(16) StoredRight {
  Right part;
};

// The parameters of a block in shared memory, with all scales.
template <int kQuads>
struct SingleLayers {
  using Layout = SingleLayout<0, 0, kQuads>;
  static constexpr uint32_t kBias = 2 * Layout::kWeightBytes;

  // Right operands of quad q of the inputs and quad j of the outputs: column g is the real (g even) or imaginary part
  // of output channel g / 2, rows t and t + 4 are the parts of input channel t.
  AFFNET_DEVICE static uint32_t weight(int layer, int j, int q, int lane) {
    return layer * Layout::kWeightBytes + ((j * kQuads + q) * kWarpThreads + lane) * 16;
  }

  AFFNET_DEVICE static uint32_t bias(int layer, int j, int t) {
    return kBias + layer * Layout::kBiasBytes + (j * kQuadChannels + t) * 8;
  }

  AFFNET_DEVICE static void stage(int layer, const float* w, const float* b, const SingleArguments& a, int block,
                                  float weight_scale, float bias_scale) {
    const int64_t imaginary = int64_t{a.K} * a.D * a.D;
    const float* const from = w + int64_t{block} * a.D * a.D;
#pragma unroll 1
    for (int e = thread_index(); e < kQuads * kQuads * kWarpThreads; e += thread_count()) {  // trips: weights
      const int g = e % kWarpThreads / 4, pair = e / kWarpThreads;
      const int in = channel_of<kQuads>(pair % kQuads, e % 4), out = channel_of<kQuads>(pair / kQuads, g / 2);
      float re = 0.f, im = 0.f;
      if (in < a.D && out < a.D) {
        re = weight_scale * from[in * a.D + out];
        im = weight_scale * from[imaginary + in * a.D + out];
      }
      const Split first(g % 2 == 0 ? re : im), second(g % 2 == 0 ? -im : re);
      shared_store(weight(layer, 0, 0, e), StoredRight{{{first.hi, second.hi}, {first.lo, second.lo}}});
    }
#pragma unroll 1
    for (int e = thread_index(); e < kQuads * kQuadChannels; e += thread_count()) {  // trips: biases
      const int out = channel_of<kQuads>(e / kQuadChannels, e % kQuadChannels);
      const float* const at = b + int64_t{block} * a.D + out;
      Complex<float> value{0.f, 0.f};
      if (out < a.D) value = {bias_scale * at[0], bias_scale * at[int64_t{a.K} * a.D]};
      shared_store(bias(layer, 0, e), value);
    }
  }
};

// A tensor core rounds towards zero, so a sum in its accumulator loses up to one unit of the last place at each
// instruction. A sum starts from zero with its small products, takes at most five quads' large ones, and is then added
// to the others by an ordinary addition. That many quads of a left operand are in registers at a time.
AFFNET_HD constexpr int sums_of(int quads) { return (quads + 4) / 5; }

template <int kQuads>
AFFNET_DEVICE Quad bias_of(int number, int j, const Lane& lane) {
  const auto b = shared_load<Complex<float>>(SingleLayers<kQuads>::bias(number, j, lane.t));
  return {{b, b}};
}

// out += the product of quads first, first + 1, ... of a layer's inputs with the weights to quad j of its outputs.
template <int kQuads, int kTiles, int kLength>
AFFNET_DEVICE void add_sum(Quad (&out)[kTiles], const Left (&in)[kTiles][kLength], int number, int j, int first,
                           const Lane& lane) {
  StoredRight w[kLength];
  float sum[kTiles][4] = {};
#pragma unroll
  for (int q = 0; q < kLength; ++q) {
    w[q] = shared_load<StoredRight>(SingleLayers<kQuads>::weight(number, j, first + q, 4 * lane.g + lane.t));
  }
#pragma unroll
  for (int q = 0; q < kLength; ++q) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      mma_tf32(sum[m], in[m][q].lo, w[q].part.hi);
      mma_tf32(sum[m], in[m][q].hi, w[q].part.lo);
    }
  }
#pragma unroll
  for (int q = 0; q < kLength; ++q) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) mma_tf32(sum[m], in[m][q].hi, w[q].part.hi);
  }
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    out[m].row[0].re += sum[m][0], out[m].row[0].im += sum[m][1];
    out[m].row[1].re += sum[m][2], out[m].row[1].im += sum[m][3];
  }
}

template <int kQuads, int kTiles, int kLength>
AFFNET_DEVICE void split_quads(Left (&to)[kTiles][kLength], const Quad (&from)[kTiles][kQuads], int first) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int q = 0; q < kLength; ++q) to[m][q] = Left(from[m][first + q]);
  }
}

// A layer's pre-activations.
template <int kQuads, int kTiles>
AFFNET_DEVICE void multiply_all(Quad (&out)[kTiles][kQuads], const Quad (&in)[kTiles][kQuads], int number,
                                const Lane& lane) {
  constexpr int kLength = kQuads / sums_of(kQuads);
  static_assert(kQuads % kLength == 0);
#pragma unroll
  for (int first = 0; first < kQuads; first += kLength) {
    Left left[kTiles][kLength];
    split_quads<kQuads, kTiles, kLength>(left, in, first);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      Quad column[kTiles];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) column[m] = first == 0 ? bias_of<kQuads>(number, j, lane) : out[m][j];
      add_sum<kQuads, kTiles, kLength>(column, left, number, j, first, lane);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) out[m][j] = column[m];
    }
  }
}

template <Activation kActivation, int kQuads, int kTiles>
AFFNET_DEVICE void activate_quads(Quad (&p)[kTiles][kQuads]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Complex<float>& v = p[m][q].row[r];
        v = {activate_fast<kActivation>(v.re), activate_fast<kActivation>(v.im)};
      }
    }
  }
}

template <int kQuads, int kTiles>
AFFNET_DEVICE void activate_quads(Quad (&p)[kTiles][kQuads], Activation activation) {
  switch (activation) {
#define AFFNET_CASE(name, enumerator)                          \
  case Activation::enumerator:                                 \
    activate_quads<Activation::enumerator, kQuads, kTiles>(p); \
    break;
    AFFNET_ACTIVATIONS(AFFNET_CASE)
#undef AFFNET_CASE
  }
}

// (M + 1) X with all scales, where m is the mask before soft-shrink; of a special column its Hermitian part.
template <bool kSpecial>
AFFNET_DEVICE Quad masked(const Quad& x, const Quad& m, float threshold, float scale, bool own) {
  Quad y;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Complex<float> v = x.row[r];
    const float re = shrink(m.row[r].re, threshold) + scale, im = shrink(m.row[r].im, threshold);
    y.row[r] = {re * v.re - im * v.im, re * v.im + im * v.re};
  }
  if constexpr (kSpecial) {
    Complex<float>&p = y.row[0], &q = y.row[1];
    if (own) {
      p.im = q.im = 0.f;
    } else {
      p = {0.5f * (p.re + q.re), 0.5f * (p.im - q.im)};
    }
  }
  return y;
}

// Maps a unit of tiles of the CTA's planes.
template <bool kSpecial, int kQuads, typename Layout>
AFFNET_DEVICE void map_unit(const SingleTiling<Layout>& tiling, int unit, float threshold, float scale,
                            const Lane& lane) {
  constexpr int kTiles = Layout::kUnitTiles;
  const LanePlanes<Layout> planes(tiling.layout, lane);
  SingleRows<kSpecial> rows[kTiles];
  Quad x[kTiles][kQuads], p[kTiles][kQuads];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    rows[m] = SingleRows<kSpecial>(tiling, unit * kTiles + m, lane, tiling.whole_units());
    load_rows<kQuads>(x[m], rows[m], planes);
  }
  multiply_all<kQuads, kTiles>(p, x, 0, lane);
  activate_quads<kQuads, kTiles>(p, tiling.layout.a.activation);
  if constexpr (kQuads % 2 == 1) warp_barrier();  // two lanes share the planes of an odd last quad

  Quad mask[kTiles][kQuads];
  multiply_all<kQuads, kTiles>(mask, p, 1, lane);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int q = 0; q < kQuads; q += 2) {
      const Quad a = masked<kSpecial>(x[m][q], mask[m][q], threshold, scale, rows[m].own);
      if (q + 1 < kQuads) {
        const Quad b = masked<kSpecial>(x[m][q + 1], mask[m][q + 1], threshold, scale, rows[m].own);
        store_quads(a, b, rows[m], planes, q);
      } else {
        store_last_quad(a, rows[m], planes, q);
      }
    }
  }
}

// The same for more channels than the registers can hold: one loop over the inputs of the first layer, one over the
// outputs of the second. Without them the compiler schedules all products together, and spills.
template <bool kSpecial, int kQuads, typename Layout>
AFFNET_DEVICE void map_wide_unit(const SingleTiling<Layout>& tiling, int unit, float threshold, float scale,
                                 const Lane& lane) {
  constexpr int kHalf = kQuads / 2, kGroup = kQuads % 4 == 0 ? 4 : 2;
  static_assert(kQuads % 2 == 0 && Layout::kUnitTiles == 1);
  const LanePlanes<Layout> planes(tiling.layout, lane);
  const SingleRows<kSpecial> rows(tiling, unit, lane, tiling.whole_units());
  Quad p[1][kQuads];
#pragma unroll
  for (int j = 0; j < kQuads; ++j) p[0][j] = bias_of<kQuads>(0, j, lane);
#pragma unroll 1
  for (int q = 0; q < kQuads; q += kGroup) {  // trips: inputs
    Quad x[1][kGroup];
    Left left[1][kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) load_quads(x[0][i], x[0][i + 1], rows, planes, q + i);
    split_quads<kGroup, 1, kGroup>(left, x, 0);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      Quad column[1] = {p[0][j]};
      add_sum<kQuads, 1, kGroup>(column, left, 0, j, q, lane);
      p[0][j] = column[0];
    }
  }
  activate_quads<kQuads, 1>(p, tiling.layout.a.activation);

  Left first[1][kHalf], second[1][kHalf];
  split_quads<kQuads, 1, kHalf>(first, p, 0);
  split_quads<kQuads, 1, kHalf>(second, p, kHalf);
#pragma unroll 1
  for (int q = 0; q < kQuads; q += 2) {  // trips: outputs
    Quad x[2], y[2];
    load_quads(x[0], x[1], rows, planes, q);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Quad column[1] = {bias_of<kQuads>(1, q + j, lane)};
      add_sum<kQuads, 1, kHalf>(column, first, 1, q + j, 0, lane);
      add_sum<kQuads, 1, kHalf>(column, second, 1, q + j, kHalf, lane);
      y[j] = masked<kSpecial>(x[j], column[0], threshold, scale, rows.own);
    }
    store_quads(y[0], y[1], rows, planes, q);
  }
}

template <bool kSpecial, int kQuads, typename Layout>
AFFNET_DEVICE void map_any_unit(const SingleTiling<Layout>& tiling, int unit, float threshold, float scale,
                                const Lane& lane) {
  if constexpr (kQuads >= 8) {
    map_wide_unit<kSpecial, kQuads>(tiling, unit, threshold, scale, lane);
  } else {
    map_unit<kSpecial, kQuads>(tiling, unit, threshold, scale, lane);
  }
}

// Maps all frequencies of the CTA's planes: the warps take the units in turn, first the regular ones.
template <int kQuads, typename Layout>
AFFNET_DEVICE void map_planes(const Layout& layout, int64_t first_image, float threshold, float scale) {
  const Lane lane;
  const SingleTiling<Layout> tiling(layout, first_image);
  const int regular = tiling.units(tiling.regular_tiles()), units = regular + tiling.units(tiling.special_tiles());
  int unit = thread_index() / kWarpThreads;
#pragma unroll 1
  for (; unit < regular; unit += kSingleWarps) {  // trips: regular
    map_any_unit<false, kQuads>(tiling, unit, threshold, scale, lane);
  }
#pragma unroll 1
  for (; unit < units; unit += kSingleWarps) {  // trips: special
    map_any_unit<true, kQuads>(tiling, unit - regular, threshold, scale, lane);
  }
}

}  // namespace affnet
