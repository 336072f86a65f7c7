// The vector-Jacobian product of the spectral map of float32 on tensor cores.
//
// A warp recomputes both layers for its 16 frequencies and takes the two adjoint products, in registers. The gradients
// of the weights sum over frequencies: both operands go through shared memory, for all warps of the CTA at once, and
// each warp keeps some elements' sums in registers for as long as it lives.
//
// Static count as in spectral_map_mma.cuh, with ReLU; nothing of it is measured on a GPU.
//
//   copying            1536 Q bytes                                            83 Q
//   tensor cores       12 Q^2 mma for the layers and their adjoints, 6 Q^2     29 Q^2
//                      for the gradients of the weights where Q is even
//   instructions       (sm_90)                                                 95 Q + 18 Q^2
//   plain FMA          its multiplications alone                               48 Q^2
//
// Plain FMA reads shared memory for twice as long as it multiplies for the gradients of the weights: 64 Q^2 in all.
#pragma once

#include "spectral_map_mma.cuh"

namespace affnet {

// How a CTA shares out the gradient of a weight matrix. An octet is eight channels: of an mma's result, 16 rows (their
// real and their imaginary parts) or eight columns. A warp has one octet of rows, all columns, and one part of the
// tile's frequencies.
template <int kQuads>
struct VjpShape {
  static constexpr int kOctets = (kQuads + 1) / 2;
  static constexpr int kParts = 4 / kOctets;
  static constexpr int kWarps = kOctets * kParts;
  static constexpr int kCtas = kQuads == 2 ? 4 : kQuads <= 4 ? 3 : 2;  // of a multiprocessor
  static constexpr int kRows = kWarps * kTileRows;
  static constexpr int kStride = 8 * kOctets + 4;  // of a row: 4 mod 8 numbers, so that both ways through are free
  static constexpr int kTileBytes = kRows * kStride * static_cast<int>(sizeof(Complex<float>));
  static constexpr uint32_t kInput = Layers<kQuads>::kBytes, kGrad = kInput + kTileBytes;
  static constexpr int kBytes = Layers<kQuads>::kBytes + 2 * kTileBytes;

  AFFNET_DEVICE static uint32_t offset(uint32_t tile, int row, int channel) {
    return tile + static_cast<uint32_t>((row * kStride + channel) * sizeof(Complex<float>));
  }

  // A lane's channel of quad q to the rows of its warp.
  AFFNET_DEVICE static void store(uint32_t tile, const Quad& value, int q, const Lane& lane) {
    const int row = thread_index() / 32 * kTileRows + lane.g;
    shared_store(offset(tile, row, kQuadChannels * q + lane.t), value.row[0]);
    shared_store(offset(tile, row + kTileRows / 2, kQuadChannels * q + lane.t), value.row[1]);
  }

  // Where the quads are odd in number, half of the last octet is never stored, but read.
  AFFNET_DEVICE static void clear_padding() {
    if constexpr (kQuads % 2 == 1) {
      for (int e = thread_index(); e < kRows * kQuadChannels; e += thread_count()) {
        const int row = e / kQuadChannels, channel = kQuadChannels * kQuads + e % kQuadChannels;
        shared_store(offset(kInput, row, channel), Complex<float>{0.f, 0.f});
        shared_store(offset(kGrad, row, channel), Complex<float>{0.f, 0.f});
      }
    }
  }
};

// A lane's sums of one layer: with o = 8 `octet` + g, db[o], and dw[i][o] of i = 8 n + 2 t and i + 1 at [n], real parts
// first. `octet` and the frequencies are the warp's.
template <int kQuads>
struct LayerSums {
  using Shape = VjpShape<kQuads>;
  float dw[Shape::kOctets][4] = {};
  float db[2] = {};

  // dw += x^H dP and db += dP over this warp's part of the tile.
  AFFNET_DEVICE void add(const Lane& lane) {
    constexpr int kSteps = Shape::kRows / Shape::kParts / 4;
    const int octet = thread_index() / 32 % Shape::kOctets, part = thread_index() / 32 / Shape::kOctets;
#pragma unroll 2
    for (int step = 0; step < kSteps; ++step) {
      const int row = 4 * (part * kSteps + step) + lane.t;
      const auto d = shared_load<Complex<float>>(Shape::offset(Shape::kGrad, row, 8 * octet + lane.g));
      db[0] += d.re;
      db[1] += d.im;
      const Left left(d.re, d.im, d.im, -d.re);
#pragma unroll
      for (int n = 0; n < Shape::kOctets; ++n) {
        const auto x = SplitComplex::of(shared_load<Complex<float>>(Shape::offset(Shape::kInput, row, 8 * n + lane.g)));
        multiply(dw[n], left, {{x.hi.re, x.hi.im}, {x.lo.re, x.lo.im}});
      }
    }
  }

  AFFNET_DEVICE void sum_bias_over_lanes() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      db[i] += shuffle_xor(db[i], 1);
      db[i] += shuffle_xor(db[i], 2);
    }
  }

  static constexpr int kBytes = (4 * Shape::kOctets + 2) * 32 * static_cast<int>(sizeof(float));

  // The sums of a warp to shared memory, and another warp's added to them.
  AFFNET_DEVICE void store(uint32_t at) const {
#pragma unroll
    for (int e = 0; e < 4 * Shape::kOctets; ++e) shared_store(slot(at, e), dw[e / 4][e % 4]);
#pragma unroll
    for (int e = 0; e < 2; ++e) shared_store(slot(at, 4 * Shape::kOctets + e), db[e]);
  }
  AFFNET_DEVICE void add_stored(uint32_t at) {
#pragma unroll
    for (int e = 0; e < 4 * Shape::kOctets; ++e) dw[e / 4][e % 4] += shared_load<float>(slot(at, e));
#pragma unroll
    for (int e = 0; e < 2; ++e) db[e] += shared_load<float>(slot(at, 4 * Shape::kOctets + e));
  }
  AFFNET_DEVICE static uint32_t slot(uint32_t at, int element) {
    return at + static_cast<uint32_t>((element * 32 + thread_index() % 32) * sizeof(float));
  }

  AFFNET_DEVICE void add_to(float* partial,  // dw [2, inputs, outputs], db [2, outputs]
                            int inputs, int outputs, const Lane& lane) const {
    const int o = 8 * (thread_index() / 32 % Shape::kOctets) + lane.g;
    if (o >= outputs) return;
    const int64_t imaginary = int64_t{inputs} * outputs;
#pragma unroll
    for (int n = 0; n < Shape::kOctets; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = 8 * n + 2 * lane.t + e % 2;
        if (i < inputs) partial[e / 2 * imaginary + int64_t{i} * outputs + o] += dw[n][e];
      }
    }
    if (lane.t > 0) return;
    partial[2 * imaginary + o] += db[0];
    partial[2 * imaginary + outputs + o] += db[1];
  }
};

template <int kQuads>
struct Sums {
  LayerSums<kQuads> first, second;

  // Added to the CTA's partial sum. The parts of the tile's frequencies are added up in order.
  AFFNET_DEVICE void flush(float* partial, int D, int Dh, const Lane& lane) {
    using Shape = VjpShape<kQuads>;
    constexpr int kOctets = Shape::kOctets, kBytes = LayerSums<kQuads>::kBytes;
    static_assert(2 * kBytes * (Shape::kWarps - kOctets) <= 2 * Shape::kTileBytes);
    const auto slot = [](int warp) { return Shape::kInput + static_cast<uint32_t>(2 * kBytes * (warp - kOctets)); };
    const int warp = thread_index() / 32;
    first.sum_bias_over_lanes();
    second.sum_bias_over_lanes();
    barrier();
    if (warp >= kOctets) {
      first.store(slot(warp));
      second.store(slot(warp) + kBytes);
    }
    barrier();
    if (warp >= kOctets) return;
    for (int other = warp + kOctets; other < Shape::kWarps; other += kOctets) {
      first.add_stored(slot(other));
      second.add_stored(slot(other) + kBytes);
    }
    first.add_to(partial, D, Dh, lane);
    second.add_to(partial + 2 * int64_t{D} * Dh + 2 * Dh, Dh, D, lane);
  }
};

template <Activation kActivation>
AFFNET_DEVICE Quad activated_vjp(const Quad& d, const Quad& p) {
  return {{{activate_vjp<kActivation>(d.row[0].re, p.row[0].re), activate_vjp<kActivation>(d.row[0].im, p.row[0].im)},
           {activate_vjp<kActivation>(d.row[1].re, p.row[1].re), activate_vjp<kActivation>(d.row[1].im, p.row[1].im)}}};
}

AFFNET_DEVICE Quad activated_vjp(const Quad& d, const Quad& p, Activation activation) {
  return with_activation(activation, [&](auto a) { return activated_vjp<decltype(a)::value>(d, p); });
}

// X := G conj(M), the gradient through the product itself, and P2 := the gradient of the mask before soft-shrink.
AFFNET_DEVICE void product_vjp(Quad& X, Quad& P2, const Quad& G, float threshold) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Complex<float> x = X.row[r], p = P2.row[r], g = G.row[r];
    const Complex<float> m{soft_shrink(p.re, threshold), soft_shrink(p.im, threshold)};
    X.row[r] = {g.re * m.re + g.im * m.im, g.im * m.re - g.re * m.im};
    P2.row[r] = {soft_shrink_vjp(g.re * x.re + g.im * x.im, p.re, threshold),
                 soft_shrink_vjp(g.im * x.re - g.re * x.im, p.im, threshold)};
  }
}

// What a row stands for in the sum over the full spectrum: two of it, or one; a conjugate only makes its row Hermitian.
AFFNET_DEVICE Quad counted(const Quad& d, bool special) {
  if (special) return {{d.row[0], {0.f, 0.f}}};
  return {{{2.f * d.row[0].re, 2.f * d.row[0].im}, {2.f * d.row[1].re, 2.f * d.row[1].im}}};
}

// One tile of a warp: G := vjp(G), and the CTA's sums over the tiles of all its warps.
template <int kQuads>
AFFNET_DEVICE void map_vjp_mma_tile(const MapArguments<float>& a, const Layers<kQuads>& layers, const Rows& rows,
                                    const Lane& lane, int64_t plane, Sums<kQuads>& sums) {
  using Shape = VjpShape<kQuads>;
  const Complex<float>* const X_channels = a.X + lane.t * plane;  // of this lane: every fourth
  Complex<float>* const G_channels = a.G + lane.t * plane;
  Quad direct[kQuads], P1[kQuads], dP2[kQuads], acc[kQuads];  // `direct` is X until the gradient is there, dP2 is P2
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int d = kQuadChannels * q;
    direct[q] = rows.load(X_channels + d * plane, a.scale, d + lane.t < a.D);
  }
  layers.start(P1, layers.kB1, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) add_quad<kQuads, false>(P1, direct[q], q, layers.w1, lane);
  const bool parameter_grads = a.partials != nullptr;
  if (parameter_grads) barrier();  // the operands of the tiles before are used up
  layers.start(dP2, layers.kB2, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const Quad O1 = activated(P1[q], a.activation);
    if (parameter_grads) Shape::store(Shape::kInput, O1, q, lane);
    add_quad<kQuads, false>(dP2, O1, q, layers.w2, lane);
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int d = kQuadChannels * q;
    product_vjp(direct[q], dP2[q], rows.load(G_channels + d * plane, a.scale, d + lane.t < a.D), a.threshold);
  }

  if (parameter_grads) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) Shape::store(Shape::kGrad, counted(dP2[q], rows.special), q, lane);
    barrier();
    sums.second.add(lane);
  }

#pragma unroll
  for (int j = 0; j < kQuads; ++j) acc[j] = {};
#pragma unroll
  for (int q = 0; q < kQuads; ++q) add_quad<kQuads, true>(acc, dP2[q], q, layers.w2, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) P1[q] = activated_vjp(acc[q], P1[q], a.activation);  // dP1
  if (a.input_grad) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) add_quad<kQuads, true>(direct, P1[q], q, layers.w1, lane);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int d = kQuadChannels * q;
      if (d + lane.t < a.D) rows.store(direct[q], G_channels + d * plane, a.scale);
    }
  }

  if (parameter_grads) {
    barrier();  // the second layer's operands are used up
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int d = kQuadChannels * q;  // X once more, from the cache: there are no registers to keep it
      Shape::store(Shape::kInput, rows.load(X_channels + d * plane, a.scale, d + lane.t < a.D), q, lane);
      Shape::store(Shape::kGrad, counted(P1[q], rows.special), q, lane);
    }
    barrier();
    sums.first.add(lane);
  }
}

// Tiles of a CTA, one of each of its warps, that a block has.
template <int kQuads>
AFFNET_HOST_DEVICE int vjp_tiles(const RowTiling& tiling, uint32_t units) {
  return (tiling.tiles(units) + VjpShape<kQuads>::kWarps - 1) / VjpShape<kQuads>::kWarps;
}

// G := vjp(G), and one partial sum of the parameters' gradients a CTA. CTA (k, run) takes every `runs`th tile of block
// k.
template <int kQuads>
AFFNET_KERNEL(32 * VjpShape<kQuads>::kWarps, VjpShape<kQuads>::kCtas)
map_vjp_mma_kernel(MapArguments<float> a, RowTiling tiling) {
  const int k = static_cast<int>(cta_index()) / static_cast<int>(a.runs);
  const Layers<kQuads> layers;
  layers.stage(a, k);
  VjpShape<kQuads>::clear_padding();
  barrier();

  const Lane lane;
  const BlockUnits units(a, k);
  const int64_t plane = int64_t{a.H} * tiling.F;
  const int tiles = vjp_tiles<kQuads>(tiling, units.count), runs = static_cast<int>(a.runs);
  Sums<kQuads> sums;
  for (int tile = static_cast<int>(cta_index()) % runs; tile < tiles; tile += runs) {
    warp_barrier();  // or the compiler reads weights before the loop, where no parameter gradients are wanted
    const Rows rows(a, tiling, units, tile * VjpShape<kQuads>::kWarps + thread_index() / 32, lane);
    map_vjp_mma_tile<kQuads>(a, layers, rows, lane, plane, sums);
  }
  if (a.partials == nullptr) return;
  sums.flush(a.partials + cta_index() * partial_size(a.D, a.Dh), a.D, a.Dh, lane);
}

}  // namespace affnet
