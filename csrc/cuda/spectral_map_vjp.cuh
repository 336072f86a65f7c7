// The vector-Jacobian product of the spectral map by plain FMA, with parameter gradients summed in a fixed order.
#pragma once

#include "spectral_map.cuh"

namespace affnet {

// dw += weight * x^H dP over the first `count` frequencies of a tile; x is [inputs, tile] and dP [outputs, tile] in
// shared memory. An element of dw belongs to the same thread for all tiles, so its sum needs no synchronisation.
template <typename T, int kTile>
AFFNET_DEVICE void add_weight_grad(T* dw,  // [2, inputs, outputs]
                                   uint32_t x, uint32_t dP, int inputs, int outputs, int count, T weight) {
  constexpr int kStride = Place<kTile>::kStride;
  const int half_i = (inputs + 1) / 2, half_o = (outputs + 1) / 2;
  const auto at = [](uint32_t rows, int row, int t) {
    return rows + static_cast<uint32_t>((row * kStride + t) * sizeof(Complex<T>));
  };
  for (int e = thread_index(); e < half_i * half_o; e += thread_count()) {
    // Two inputs by two outputs, half a matrix apart so that neighbouring threads read neighbouring rows.
    const int i[2] = {e / half_o, e / half_o + half_i}, o[2] = {e % half_o, e % half_o + half_o};
    const int i_read[2] = {i[0], i[1] < inputs ? i[1] : i[0]}, o_read[2] = {o[0], o[1] < outputs ? o[1] : o[0]};
    Complex<T> sum[2][2] = {};
    for (int t = 0; t < count; ++t) {
      const Complex<T> a[2] = {shared_load<Complex<T>>(at(x, i_read[0], t)),
                               shared_load<Complex<T>>(at(x, i_read[1], t))};
      const Complex<T> d[2] = {shared_load<Complex<T>>(at(dP, o_read[0], t)),
                               shared_load<Complex<T>>(at(dP, o_read[1], t))};
#pragma unroll
      for (int p = 0; p < 2; ++p) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          sum[p][q].re += a[p].re * d[q].re;
          sum[p][q].re += a[p].im * d[q].im;
          sum[p][q].im += a[p].re * d[q].im;
          sum[p][q].im -= a[p].im * d[q].re;
        }
      }
    }
    for (int p = 0; p < 2; ++p) {
      for (int q = 0; q < 2; ++q) {
        if (i[p] >= inputs || o[q] >= outputs) continue;
        T* const to = dw + int64_t{i[p]} * outputs + o[q];
        to[0] += weight * sum[p][q].re;
        to[int64_t{inputs} * outputs] += weight * sum[p][q].im;
      }
    }
  }
}

// db += weight * the sum of dP over the first `count` frequencies of a tile.
template <typename T, int kTile>
AFFNET_DEVICE void add_bias_grad(T* db,  // [2, outputs]
                                 uint32_t dP, int outputs, int count, T weight) {
  for (int o = thread_index(); o < outputs; o += thread_count()) {
    Complex<T> sum{T(0), T(0)};
    for (int t = 0; t < count; ++t) {
      const Complex<T> d =
          shared_load<Complex<T>>(dP + static_cast<uint32_t>((o * Place<kTile>::kStride + t) * sizeof(Complex<T>)));
      sum.re += d.re;
      sum.im += d.im;
    }
    db[o] += weight * sum.re;
    db[outputs + o] += weight * sum.im;
  }
}

// One tile: G := vjp(G), and the parameter gradients are added to `partial` unless that is null.
template <typename T, int kTile>
AFFNET_DEVICE void map_vjp_tile(const MapArguments<T>& a, const Block<T, kTile>& block, const Place<kTile>& place,
                                const Complex<T>* X_planes, Complex<T>* G_planes, int64_t plane, T* partial) {
  block.load_tile(a, place, X_planes, plane);
  Complex<T> acc[2][kThreadOutputs], direct[2][kThreadOutputs];
  block.mask(acc, a, place, true);
#pragma unroll
  for (int o = 0; o < kThreadOutputs; ++o) {
    const int d = place.group * kThreadOutputs + o;
    if (d >= a.D) break;
    Complex<T> G[2];
    place.load(G, G_planes + d * plane, a.scale);
#pragma unroll
    for (int f = 0; f < 2; ++f) {
      const Complex<T> p = acc[f][o], g = G[f];
      const Complex<T> x = shared_load<Complex<T>>(place.template offset<T>(block.X, d, f));
      const Complex<T> m{soft_shrink(p.re, a.threshold), soft_shrink(p.im, a.threshold)};
      direct[f][o] = {g.re * m.re + g.im * m.im, g.im * m.re - g.re * m.im};
      const Complex<T> dP2{soft_shrink_vjp(g.re * x.re + g.im * x.im, p.re, a.threshold),
                           soft_shrink_vjp(g.im * x.re - g.re * x.im, p.im, a.threshold)};
      shared_store(place.template offset<T>(block.dP2, d, f), dP2);
    }
  }

  start<T>(acc, nullptr, 0, place.group, a.Dh);
  block_linear<T, kTile>(acc, place, block.dP2, block.w2.adjoint());
#pragma unroll
  for (int o = 0; o < kThreadOutputs; ++o) {
    const int channel = place.group * kThreadOutputs + o;
    if (channel >= a.Dh) break;
#pragma unroll
    for (int f = 0; f < 2; ++f) {  // dP1 overwrites P1: a thread reads and writes only its own elements
      const uint32_t at = place.template offset<T>(block.P1, channel, f);
      const Complex<T> p = shared_load<Complex<T>>(at), d = acc[f][o];
      shared_store(at, Complex<T>{activate_vjp(d.re, p.re, a.activation), activate_vjp(d.im, p.im, a.activation)});
    }
  }

  if (a.input_grad) {
    start<T>(acc, nullptr, 0, place.group, a.D);
    block_linear<T, kTile>(acc, place, block.P1, block.w1.adjoint());
#pragma unroll
    for (int o = 0; o < kThreadOutputs; ++o) {
      const int d = place.group * kThreadOutputs + o;
      if (d >= a.D) break;
      Complex<T> dX[2];
      for (int f = 0; f < 2; ++f) {
        dX[f] = {direct[f][o].re + acc[f][o].re, direct[f][o].im + acc[f][o].im};
      }
      place.store(dX, G_planes + d * plane, a.scale);
    }
  }
  if (partial == nullptr) return;
  barrier();
  // The second half of a special tile holds conjugates, which are not part of the sum over frequencies.
  const int count = place.special ? kTile / 2 : kTile;
  const T weight = static_cast<T>(hermitian_weight(place.special ? 0 : 1, a.W));
  const int64_t dw = 2 * int64_t{a.D} * a.Dh;
  T* const dw2 = partial + dw + 2 * a.Dh;
  add_weight_grad<T, kTile>(partial, block.X, block.P1, a.D, a.Dh, count, weight);
  add_bias_grad<T, kTile>(partial + dw, block.P1, a.Dh, count, weight);
  add_weight_grad<T, kTile>(dw2, block.O1, block.dP2, a.Dh, a.D, count, weight);
  add_bias_grad<T, kTile>(dw2 + dw, block.dP2, a.D, count, weight);
}

// G := vjp(G), and one partial sum of the parameter gradients per CTA. CTA (k, i) takes tiles i, i + ctas_per_block,
// ... of block k.
template <typename T, int kTile>
AFFNET_KERNEL((kMaxThreads<T, true>))
map_vjp_kernel(MapArguments<T> a) {
  const Tiling tiling = tiling_of(a.H, a.W, kTile);
  const int k = static_cast<int>(cta_index() / a.ctas_per_block);
  const int64_t cta = cta_index() % a.ctas_per_block, plane = int64_t{a.H} * tiling.F;
  const Block<T, kTile> block(a, k);
  T* const partial = a.partials == nullptr ? nullptr : a.partials + cta_index() * partial_size(a.D, a.Dh);
  const int64_t first = (k - a.first % a.K + a.K) % a.K;  // block-image of block k in the chunk
  const int64_t tiles = first < a.block_images ? ((a.block_images - first - 1) / a.K + 1) * tiling.tiles : 0;
  for (int64_t tile = cta; tile < tiles; tile += a.ctas_per_block) {
    barrier();  // every thread is done with the previous tile
    const Place<kTile> place(tiling, static_cast<int>(tile % tiling.tiles));
    const int64_t offset = (first + tile / tiling.tiles * a.K) * a.D * plane;
    map_vjp_tile<T, kTile>(a, block, place, a.X + offset, a.G + offset, plane, partial);
  }
}

constexpr int kReduceThreads = 256;

// The four parameter gradients: the partial sums of each block, added in order.
template <typename T>
AFFNET_KERNEL(kReduceThreads)
reduce_kernel(const T* partials,  // [K, ctas_per_block, partial_size]
              int64_t ctas_per_block, int K, int D, int Dh,
              // outputs
              T* dw1,  // [2, K, D, Dh]
              T* db1,  // [2, K, Dh]
              T* dw2,  // [2, K, Dh, D]
              T* db2   // [2, K, D]
) {
  const int64_t size = partial_size(D, Dh), element = cta_index() * thread_count() + thread_index();
  if (element >= K * size) return;
  const int64_t k = element / size;
  int64_t index = element % size;
  const T* const from = partials + k * ctas_per_block * size + index;
  T sum = T(0);
  for (int64_t i = 0; i < ctas_per_block; ++i) sum += from[i * size];
  T* const to[4] = {dw1, db1, dw2, db2};
  const int64_t counts[4] = {int64_t{D} * Dh, Dh, int64_t{D} * Dh, D};
  for (int p = 0; p < 4; ++p) {
    if (index < 2 * counts[p]) {
      const int64_t imaginary = index / counts[p];
      to[p][(imaginary * K + k) * counts[p] + index % counts[p]] = sum;
      return;
    }
    index -= 2 * counts[p];
  }
}

// The kernel of a plan without tensor cores. Naming every instance here is what compiles them.
template <typename T>
using FmaKernel = void (*)(MapArguments<T>);

template <typename T, int... kTiles>
FmaKernel<T> fma_kernel(int tile, bool backward, std::integer_sequence<int, kTiles...>) {
  FmaKernel<T> kernel = nullptr;
  const auto consider = [&](auto candidate) {
    constexpr int kTile = decltype(candidate)::value;
    if (tile != kTile) return;
    if constexpr (kTile >= kMinTile<T, false>) {
      if (!backward) kernel = &map_kernel<T, kTile>;
    }
    if constexpr (kTile >= kMinTile<T, true>) {
      if (backward) kernel = &map_vjp_kernel<T, kTile>;
    }
  };
  (consider(std::integral_constant<int, kTiles>{}), ...);
  return kernel;
}

template <typename T>
FmaKernel<T> fma_kernel(const LaunchPlan& plan, bool backward) {
  return fma_kernel<T>(plan.tile, backward, FmaTiles{});
}

}  // namespace affnet
