// The vector-Jacobian product of the spectral map of float32 on tensor cores.
//
// A warp recomputes both layers for its 16 frequencies and multiplies by the two adjoint matrices, all in registers.
// The gradients of the weights are sums over frequencies: all warps of a CTA put their operands in shared memory, and
// each warp keeps the sums of some elements in registers until the kernel ends.
//
// Predicted cost, as in spectral_map_mma.cuh, with ReLU; not measured on a GPU:
//
//   copying            1536 Q bytes                                            83 Q
//   tensor cores       12 Q^2 mma for the layers and their adjoints, 6 Q^2     29 Q^2
//                      for the gradients of the weights where Q is even
//   instructions       (sm_90)                                                 95 Q + 18 Q^2
//   plain FMA          its multiplications alone                               48 Q^2
//
// For the gradients of the weights plain FMA spends twice as long reading shared memory as multiplying: 64 Q^2 in all.
#pragma once

#include "spectral_map_mma.cuh"

namespace affnet {

// vjp_shape as compile-time constants, and the two operands of a weight gradient in shared memory, behind the layers.
template <int kQuads>
struct Operands {
  static constexpr int kOctets = vjp_shape(kQuads).octets;
  static constexpr int kParts = vjp_shape(kQuads).parts;
  static constexpr int kWarps = vjp_shape(kQuads).warps;
  static constexpr int kCtas = vjp_shape(kQuads).ctas;
  static constexpr int kRows = vjp_shape(kQuads).rows;
  static constexpr int kStride = vjp_shape(kQuads).stride;
  static constexpr int kBytes = vjp_shape(kQuads).operand_bytes;
  static constexpr uint32_t kInput = mma_layer_bytes(kQuads), kGrad = kInput + kBytes;
  static_assert(kBytes == kRows * kStride * static_cast<int>(sizeof(Complex<float>)));

  AFFNET_DEVICE static uint32_t offset(uint32_t operand, int row, int channel) {
    return operand + static_cast<uint32_t>((row * kStride + channel) * sizeof(Complex<float>));
  }

  // Stores a lane's channel of quad q at the rows of its warp.
  AFFNET_DEVICE static void store(uint32_t operand, const Quad& value, int q, const Lane& lane) {
    const int row = thread_index() / kWarpThreads * kTileRows + lane.g;
    shared_store(offset(operand, row, kQuadChannels * q + lane.t), value.row[0]);
    shared_store(offset(operand, row + kTileRows / 2, kQuadChannels * q + lane.t), value.row[1]);
  }

  // With an odd number of quads, half of the last octet is read but never stored.
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

// A lane's sums of one layer. With o = 8 * octet + g they are db[o] and, at [n], dw[i][o] for i = 8 n + 2 t and i + 1,
// real parts first. The octet, and the part of the tile's frequencies that is summed, are the warp's.
template <int kQuads>
struct LayerSums {
  using Operands = affnet::Operands<kQuads>;
  float dw[Operands::kOctets][4] = {};
  float db[2] = {};

  // dw += x^H dP and db += dP over the warp's part of the frequencies, four at a time.
  AFFNET_DEVICE void add(const Lane& lane) {
    constexpr int kChunks = Operands::kRows / Operands::kParts / 4;
    const int octet = thread_index() / kWarpThreads % Operands::kOctets,
              part = thread_index() / kWarpThreads / Operands::kOctets;
#pragma unroll 2
    for (int chunk = 0; chunk < kChunks; ++chunk) {  // trips: chunks
      const int row = 4 * (part * kChunks + chunk) + lane.t;
      const auto d = shared_load<Complex<float>>(Operands::offset(Operands::kGrad, row, 8 * octet + lane.g));
      db[0] += d.re;
      db[1] += d.im;
      const Left left(d.re, d.im, d.im, -d.re);
#pragma unroll
      for (int n = 0; n < Operands::kOctets; ++n) {
        const auto x =
            SplitComplex::of(shared_load<Complex<float>>(Operands::offset(Operands::kInput, row, 8 * n + lane.g)));
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

  static constexpr int kBytes = (4 * Operands::kOctets + 2) * 32 * static_cast<int>(sizeof(float));

  // Stores the sums of a warp in shared memory, and adds those that another warp has stored.
  AFFNET_DEVICE void store(uint32_t at) const {
#pragma unroll
    for (int e = 0; e < 4 * Operands::kOctets; ++e) shared_store(address(at, e), dw[e / 4][e % 4]);
#pragma unroll
    for (int e = 0; e < 2; ++e) shared_store(address(at, 4 * Operands::kOctets + e), db[e]);
  }
  AFFNET_DEVICE void add_stored(uint32_t at) {
#pragma unroll
    for (int e = 0; e < 4 * Operands::kOctets; ++e) dw[e / 4][e % 4] += shared_load<float>(address(at, e));
#pragma unroll
    for (int e = 0; e < 2; ++e) db[e] += shared_load<float>(address(at, 4 * Operands::kOctets + e));
  }
  AFFNET_DEVICE static uint32_t address(uint32_t at, int element) {
    return at + static_cast<uint32_t>((element * 32 + thread_index() % kWarpThreads) * sizeof(float));
  }

  AFFNET_DEVICE void add_to(float* partial,  // dw [2, inputs, outputs], db [2, outputs]
                            int inputs, int outputs, const Lane& lane) const {
    const int o = 8 * (thread_index() / kWarpThreads % Operands::kOctets) + lane.g;
    if (o >= outputs) return;
    const int64_t imaginary = int64_t{inputs} * outputs;
#pragma unroll
    for (int n = 0; n < Operands::kOctets; ++n) {
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

  // Adds the sums of all warps to the CTA's partial sum, parts of the frequencies in order.
  AFFNET_DEVICE void flush(float* partial, int D, int Dh, const Lane& lane) {
    using Operands = affnet::Operands<kQuads>;
    constexpr int kOctets = Operands::kOctets, kBytes = LayerSums<kQuads>::kBytes;
    static_assert(2 * kBytes * (Operands::kWarps - kOctets) <= 2 * Operands::kBytes);
    const auto stored = [](int warp) {
      return Operands::kInput + static_cast<uint32_t>(2 * kBytes * (warp - kOctets));
    };
    const int warp = thread_index() / kWarpThreads;
    first.sum_bias_over_lanes();
    second.sum_bias_over_lanes();
    barrier();
    if (warp >= kOctets) {
      first.store(stored(warp));
      second.store(stored(warp) + kBytes);
    }
    barrier();
    if (warp >= kOctets) return;
    for (int other = warp + kOctets; other < Operands::kWarps; other += kOctets) {
      first.add_stored(stored(other));
      second.add_stored(stored(other) + kBytes);
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

// The derivative of the product M X: X := G conj(M), and P2 := the gradient of the mask before soft-shrink.
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

// A row's contribution to a sum over the full spectrum: regular rows stand for two frequencies; of a special tile's
// rows the conjugates do not count.
AFFNET_DEVICE Quad counted(const Quad& d, bool special) {
  if (special) return {{d.row[0], {0.f, 0.f}}};
  return {{{2.f * d.row[0].re, 2.f * d.row[0].im}, {2.f * d.row[1].re, 2.f * d.row[1].im}}};
}

// One tile per warp: G := vjp(G), and the sums over the tiles of all warps of the CTA.
template <int kQuads>
AFFNET_DEVICE void map_vjp_mma_tile(const MapArguments<float>& a, const Layers<kQuads>& layers, const Rows& rows,
                                    const Lane& lane, int64_t plane, Sums<kQuads>& sums) {
  using Operands = affnet::Operands<kQuads>;
  const Complex<float>* const X_channels = a.X + lane.t * plane;  // a lane has every fourth
  Complex<float>* const G_channels = a.G + lane.t * plane;
  Quad direct[kQuads], P1[kQuads], dP2[kQuads], acc[kQuads];  // `direct` starts as X, dP2 as P2
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int d = kQuadChannels * q;
    direct[q] = rows.load(X_channels + d * plane, a.scale, d + lane.t < a.D);
  }
  layers.start(P1, layers.kB1, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) add_quad<kQuads, false>(P1, direct[q], q, layers.w1, lane);
  const bool parameter_grads = a.partials != nullptr;
  if (parameter_grads) barrier();  // the operands of the previous tiles are used up
  layers.start(dP2, layers.kB2, lane);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const Quad O1 = activated(P1[q], a.activation);
    if (parameter_grads) Operands::store(Operands::kInput, O1, q, lane);
    add_quad<kQuads, false>(dP2, O1, q, layers.w2, lane);
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int d = kQuadChannels * q;
    product_vjp(direct[q], dP2[q], rows.load(G_channels + d * plane, a.scale, d + lane.t < a.D), a.threshold);
  }

  if (parameter_grads) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) Operands::store(Operands::kGrad, counted(dP2[q], rows.special), q, lane);
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
      const int d = kQuadChannels * q;  // X is read again, from a cache: there are no registers to keep it
      Operands::store(Operands::kInput, rows.load(X_channels + d * plane, a.scale, d + lane.t < a.D), q, lane);
      Operands::store(Operands::kGrad, counted(P1[q], rows.special), q, lane);
    }
    barrier();
    sums.first.add(lane);
  }
}

// G := vjp(G), and one partial sum of the parameter gradients per CTA. The ctas_per_block CTAs of a block take its
// tiles in turn, as many at a time as they have warps.
template <int kQuads>
AFFNET_KERNEL(kWarpThreads* vjp_shape(kQuads).warps, vjp_shape(kQuads).ctas)
map_vjp_mma_kernel(MapArguments<float> a, RowTiling tiling) {
  constexpr int kWarps = Operands<kQuads>::kWarps;
  const int ctas = static_cast<int>(a.ctas_per_block), k = static_cast<int>(cta_index()) / ctas;
  const Layers<kQuads> layers;
  layers.stage(a, k);
  Operands<kQuads>::clear_padding();
  barrier();

  const Lane lane;
  const BlockImages images(a, k);
  const int64_t plane = int64_t{a.H} * tiling.F;
  const int tiles = (tiling.tiles(images.count) + kWarps - 1) / kWarps;
  Sums<kQuads> sums;
  for (int tile = static_cast<int>(cta_index()) % ctas; tile < tiles; tile += ctas) {
    warp_barrier();  // else the compiler hoists loads of weights out of the loop if no parameter gradients are wanted
    const Rows rows(a, tiling, images, tile * kWarps + thread_index() / kWarpThreads, lane);
    map_vjp_mma_tile<kQuads>(a, layers, rows, lane, plane, sums);
  }
  if (a.partials == nullptr) return;
  sums.flush(a.partials + cta_index() * partial_size(a.D, a.Dh), a.D, a.Dh, lane);
}

// Naming every instance here is what compiles them.
template <int... kQuads>
MmaKernel mma_kernel(int quads, bool backward, std::integer_sequence<int, kQuads...>) {
  MmaKernel kernel = nullptr;
  const auto consider = [&](auto candidate) {
    constexpr int kCandidate = decltype(candidate)::value;
    if (quads != kCandidate) return;
    if (!backward) kernel = &map_mma_kernel<kCandidate>;
    if constexpr (kCandidate <= kMaxVjpQuads) {
      if (backward) kernel = &map_vjp_mma_kernel<kCandidate>;
    }
  };
  (consider(std::integral_constant<int, kQuads>{}), ...);
  return kernel;
}

}  // namespace affnet
