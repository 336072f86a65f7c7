// The vector-Jacobian product of the map on complex planes in shared memory: the spectrum of x, and that of dy, which
// becomes the spectrum of dx. The gradients of the parameters are summed as in spectral_map_vjp_mma.cuh, but channels
// are counted in the order of a lane's quads (channel_of) until the sums leave the CTA.
#pragma once

#include "../spectral_map_vjp_mma.cuh"
#include "single_rows.cuh"

namespace affnet {

// Both layers in shared memory, inputs and outputs in the order of quads.
template <int kQuads>
struct SingleVjpLayers : Layers<kQuads> {
  static constexpr uint32_t kPlanes = vjp_shape(kQuads).shared_bytes;  // where the planes start, behind the operands

  AFFNET_DEVICE static int channel(int position) {
    return channel_of<kQuads>(position / kQuadChannels, position % kQuadChannels);
  }

  AFFNET_DEVICE void stage(const SingleArguments& a, int block) const {
    stage_weights(this->w1.at, a.w1, a, block);
    stage_weights(this->w2.at, a.w2, a, block);
    stage_biases(this->kB1, a.b1, a, block);
    stage_biases(this->kB2, a.b2, a, block);
  }

  AFFNET_DEVICE static void stage_weights(uint32_t to, const float* w, const SingleArguments& a, int block) {
    constexpr int kPair = Weights<kQuads>::kQuadPair;
    const Matrix<float> from(w, int64_t{a.K} * a.D * a.D, block, a.D, a.D);
#pragma unroll 1
    for (int e = thread_index(); e < kQuads * kQuads * kPair; e += thread_count()) {  // trips: weights
      const int pair = e / kPair, row = e % kPair / kQuadChannels;
      const int i = channel(pair / kQuads * kQuadChannels + row);
      const int o = channel(pair % kQuads * kQuadChannels + (e % kQuadChannels ^ row / 2));
      Complex<float> value{0.f, 0.f};
      if (i < a.D && o < a.D) value = {from.re[i * a.D + o], from.im[i * a.D + o]};
      shared_store(to + static_cast<uint32_t>(e * sizeof(SplitComplex)), SplitComplex::of(value));
    }
  }

  AFFNET_DEVICE static void stage_biases(uint32_t to, const float* b, const SingleArguments& a, int block) {
#pragma unroll 1
    for (int e = thread_index(); e < kQuads * kQuadChannels; e += thread_count()) {  // trips: biases
      const int c = channel(e);
      const float* const from = b + int64_t{block} * a.D + c;
      Complex<float> value{0.f, 0.f};
      if (c < a.D) value = {from[0], from[int64_t{a.K} * a.D]};
      shared_store(to + static_cast<uint32_t>(e * sizeof(value)), value);
    }
  }
};

// The sums of a CTA leave it as one partial sum [partial_size(D, D)], parts of the frequencies in order. A barrier
// comes before, because the sums of warps replace the operands.
template <int kQuads>
struct SingleSums : Sums<kQuads> {
  using Operands = affnet::Operands<kQuads>;

  AFFNET_DEVICE void flush(float* partial, int D, const Lane& lane) {
    constexpr int kBytes = LayerSums<kQuads>::kBytes, kOctets = Operands::kOctets;
    const int warp = thread_index() / kWarpThreads;
    const uint32_t mine = Operands::kInput + static_cast<uint32_t>(2 * kBytes * (warp - kOctets));
    this->first.sum_bias_over_lanes();
    this->second.sum_bias_over_lanes();
    if (warp >= kOctets) {
      this->first.store(mine);
      this->second.store(mine + kBytes);
    }
    barrier();
    if (warp >= kOctets) return;
    for (int other = warp + kOctets; other < Operands::kWarps; other += kOctets) {
      const uint32_t stored = Operands::kInput + static_cast<uint32_t>(2 * kBytes * (other - kOctets));
      this->first.add_stored(stored);
      this->second.add_stored(stored + kBytes);
    }
    store_layer(this->first, partial, D, lane);
    store_layer(this->second, partial + 2 * int64_t{D} * D + 2 * D, D, lane);
  }

  AFFNET_DEVICE static void store_layer(const LayerSums<kQuads>& sums,
                                        float* partial,  // dw [2, D, D], db [2, D]
                                        int D, const Lane& lane) {
    const int octet = 8 * (thread_index() / kWarpThreads % Operands::kOctets) + lane.g;
    const int o = octet < kQuads * kQuadChannels ? SingleVjpLayers<kQuads>::channel(octet) : D;
    if (o >= D) return;
#pragma unroll
    for (int n = 0; n < Operands::kOctets; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int position = 8 * n + 2 * lane.t + e % 2;
        const int i = position < kQuads * kQuadChannels ? SingleVjpLayers<kQuads>::channel(position) : D;
        if (i < D) partial[e / 2 * D * D + i * D + o] = sums.dw[n][e];
      }
    }
    if (lane.t > 0) return;
    partial[2 * D * D + o] = sums.db[0];
    partial[2 * D * D + D + o] = sums.db[1];
  }
};

// How often a row counts in a sum over the full spectrum: a regular one twice. In a special tile both rows count,
// except that an odd H has only one frequency that is its own negative.
template <bool kSpecial>
AFFNET_DEVICE Quad counted_rows(const Quad& d, bool first_only) {
  if constexpr (kSpecial) return {{d.row[0], first_only ? Complex<float>{0.f, 0.f} : d.row[1]}};
  return {{{2.f * d.row[0].re, 2.f * d.row[0].im}, {2.f * d.row[1].re, 2.f * d.row[1].im}}};
}

template <int kQuads>
AFFNET_DEVICE void scale_quads(Quad (&x)[kQuads], float scale) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int r = 0; r < 2; ++r) x[q].row[r].re *= scale, x[q].row[r].im *= scale;
  }
}

// The Hermitian part in special columns.
template <bool kSpecial>
AFFNET_DEVICE void finish_quad(Quad& d, bool own) {
  if constexpr (kSpecial) {
    Complex<float>&p = d.row[0], &q = d.row[1];
    if (own) {
      p.im = q.im = 0.f;
    } else {
      p = {0.5f * (p.re + q.re), 0.5f * (p.im - q.im)};
    }
  }
}

// One tile per warp; all warps of the CTA must call it, as it sums over their tiles. x and g are planes.
template <bool kSpecial, int kQuads, typename Layout>
AFFNET_DEVICE void map_vjp_tile(const SingleTiling<Layout>& tiling, const Layout& g_layout, int tile,
                                const SingleVjpArguments& a, const Lane& lane, SingleSums<kQuads>& sums) {
  using Operands = affnet::Operands<kQuads>;
  const Layout& x_layout = tiling.layout;
  const SingleVjpLayers<kQuads> layers;
  const LanePlanes<Layout> planes(x_layout, lane);
  const float size = static_cast<float>(x_layout.H() * x_layout.W()), scale = 0.5f / sqrtf(size);
  const Activation activation = a.call.activation;
  const float threshold = a.call.threshold;
  const SingleRows<kSpecial> rows(tiling, tile, lane);
  SingleRows<kSpecial> g_rows = rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    g_rows.row[r].at += g_layout.start - x_layout.start;
    g_rows.row[r].negative += g_layout.start - x_layout.start;
  }
  const bool parameter_grads = a.partials != nullptr;
  const bool first_only = rows.own && x_layout.H() % 2 == 1;

  Quad direct[kQuads], P1[kQuads], dP2[kQuads], G[kQuads], acc[kQuads];  // `direct` starts as X, dP2 as P2
  load_rows<kQuads>(direct, rows, planes);
  scale_quads<kQuads>(direct, scale);
  layers.start(P1, layers.kB1, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) add_quad<kQuads, false>(P1, direct[q], q, layers.w1, lane);
  if (parameter_grads) barrier();  // the operands of the previous tiles are used up
  layers.start(dP2, layers.kB2, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const Quad O1 = activated(P1[q], activation);
    if (parameter_grads) Operands::store(Operands::kInput, O1, q, lane);
    add_quad<kQuads, false>(dP2, O1, q, layers.w2, lane);
  }
  load_rows<kQuads>(G, g_rows, planes);
  scale_quads<kQuads>(G, scale);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    product_vjp(direct[q], dP2[q], G[q], threshold);
#pragma unroll
    for (int r = 0; r < 2; ++r) direct[q].row[r].re += G[q].row[r].re, direct[q].row[r].im += G[q].row[r].im;
  }

  if (parameter_grads) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Operands::store(Operands::kGrad, counted_rows<kSpecial>(dP2[q], first_only), q, lane);
    }
    barrier();
    sums.second.add(lane);
  }

#pragma unroll
  for (int j = 0; j < kQuads; ++j) acc[j] = {};
#pragma unroll
  for (int q = 0; q < kQuads; ++q) add_quad<kQuads, true>(acc, dP2[q], q, layers.w2, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) P1[q] = activated_vjp(acc[q], P1[q], activation);  // dP1
  if (a.input_grad) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) add_quad<kQuads, true>(direct, P1[q], q, layers.w1, lane);
    scale_quads<kQuads>(direct, 2.f * scale);
    if constexpr (kQuads % 2 == 1) warp_barrier();  // two lanes share the planes of the last quad
#pragma unroll
    for (int q = 0; q < kQuads; ++q) finish_quad<kSpecial>(direct[q], rows.own);
#pragma unroll
    for (int q = 0; q + 1 < kQuads; q += 2) store_quads(direct[q], direct[q + 1], g_rows, planes, q);
    if constexpr (kQuads % 2 == 1) store_last_quad(direct[kQuads - 1], g_rows, planes, kQuads - 1);
  }

  if (parameter_grads) {
    barrier();                           // the second layer's operands are used up
    load_rows<kQuads>(G, rows, planes);  // X again: there are no registers to keep it
    scale_quads<kQuads>(G, scale);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Operands::store(Operands::kInput, G[q], q, lane);
      Operands::store(Operands::kGrad, counted_rows<kSpecial>(P1[q], first_only), q, lane);
    }
    barrier();
    sums.first.add(lane);
  }
}

}  // namespace affnet
