// Complex contractions over the channels of a block, one vector of frequencies at a time, and over the frequencies.
//
// A complex product takes three real ones: with t = w_re * (x_re + x_im), its parts are t - x_im * (w_re + w_im) and
// t + x_re * (w_im - w_re). The sums and differences of a weight are made once for a block, those of x on the way.
#pragma once

#include "planes.h"
#include "simd/shuffle.h"

namespace affnet::AFFNET_CAPABILITY {

// [channels] complex vectors; those of channel c at re + c * stride and im + c * stride.
template <typename T>
struct Channels {
  T* re;
  T* im;
  ptrdiff_t stride;
  AFFNET_INLINE Channels operator+(ptrdiff_t offset) const { return {re + offset, im + offset, stride}; }
};

// A layer's weight [inputs, outputs] as three matrices: w_re, w_im - w_re, w_re + w_im.
template <typename T>
struct Weight {
  T* re;
  T* difference;
  T* sum;
  int inputs, outputs;
};

template <typename T>
void prepare_weight(Weight<T> to, const T* re, const T* im, T scale) {
  const int count = to.inputs * to.outputs;
  for (int i = 0; i < count; ++i) {
    to.re[i] = re[i] * scale;
    to.difference[i] = (im[i] - re[i]) * scale;
    to.sum[i] = (im[i] + re[i]) * scale;
  }
}

template <typename T>
struct Bias {  // [outputs]
  const T* re;
  const T* im;
};

// w^T x + b, or conj(w) x.
enum class Product { kForward, kAdjoint };

// N outputs from `first` on. finish(o, v, re, im) is told output o for the vector of frequencies that starts at v: what
// becomes of it happens here, in registers, for each trip through memory costs as much as ten or twenty inputs.
template <int N, Product kProduct, typename T, typename Finish>
__attribute__((noinline)) void contract_tile(Channels<const T> x, int inputs, const Weight<T>& w, Bias<T> bias,
                                             int first, int vectors, Finish finish, Prefetcher& prefetcher) {
  constexpr bool kAdjoint = kProduct == Product::kAdjoint;
  using V = Vec<T>;
  const ptrdiff_t input_stride = kAdjoint ? 1 : w.outputs, output_stride = kAdjoint ? w.outputs : 1;
  const ptrdiff_t difference = w.difference - w.re, sum = w.sum - w.re;
  for (int v = 0; v < vectors; ++v) {
    const T* w_re = w.re + first * output_stride;
    V both[N], with_re[N], with_im[N];
    unroll<N>([&](auto o) AFFNET_LAMBDA {
      both[o] = V(T(0));
      with_re[o] = V(kAdjoint ? T(0) : bias.im[first + o]);
      with_im[o] = V(kAdjoint ? T(0) : bias.re[first + o]);
    });
    for (int i = 0; i < inputs; ++i) {
      const V re = V::load(x.re + i * x.stride), im = V::load(x.im + i * x.stride), both_parts = re + im;
      unroll<N>([&](auto o) AFFNET_LAMBDA {
        const T* const at = w_re + o * output_stride;
        both[o] += both_parts * at[0];
        with_re[o] = kAdjoint ? with_re[o] - re * at[sum] : with_re[o] + re * at[difference];
        with_im[o] = kAdjoint ? with_im[o] + im * at[difference] : with_im[o] - im * at[sum];
      });
      w_re += input_stride;
    }
    unroll<N>([&](auto o)
                  AFFNET_LAMBDA { finish(first + o, v * V::kLanes, both[o] + with_im[o], both[o] + with_re[o]); });
    prefetcher.advance();
    x = x + V::kLanes;
  }
}

constexpr int contraction_tiles(int outputs) { return (outputs + kTileOutputs - 1) / kTileOutputs; }

// For some vectors of frequencies: so many at once that a tile's weights are read from memory less often, and so few
// that x and what comes of it stay in the first cache.
template <Product kProduct, typename T, typename Finish>
AFFNET_INLINE void contract(Channels<const T> x, const Weight<T>& w, Bias<T> bias, int vectors, const Finish& finish,
                            Prefetcher& prefetcher) {
  constexpr bool kAdjoint = kProduct == Product::kAdjoint;
  const int inputs = kAdjoint ? w.outputs : w.inputs, outputs = kAdjoint ? w.inputs : w.outputs;
  const int tiles = contraction_tiles(outputs);
  int first = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int count = (outputs - first + tiles - tile - 1) / (tiles - tile);  // tiles of equal size, or one less
    const auto run = [&](auto n) AFFNET_LAMBDA {
      contract_tile<n, kProduct>(x, inputs, w, bias, first, vectors, finish, prefetcher);
    };
    switch (count) {
      case 1:
        run(std::integral_constant<int, 1>{});
        break;
      case 2:
        run(std::integral_constant<int, 2>{});
        break;
      case 3:
        run(std::integral_constant<int, 3>{});
        break;
      case 4:
        run(std::integral_constant<int, 4>{});
        break;
      default:
        if constexpr (kTileOutputs == 8) {
          switch (count) {
            case 5:
              run(std::integral_constant<int, 5>{});
              break;
            case 6:
              run(std::integral_constant<int, 6>{});
              break;
            case 7:
              run(std::integral_constant<int, 7>{});
              break;
            default:
              run(std::integral_constant<int, 8>{});
          }
        }
    }
    first += count;
  }
}

// The gradients of a block's parameters are summed in tiles of a weight, each as vectors: its sums lie together.
inline constexpr int kOuterInputs = kTileOutputs / 2, kOuterOutputs = 2;  // 3 * kInputs * kOutputs accumulators
template <typename T>
constexpr int kOuterSums = round_up(2 * kOuterInputs * kOuterOutputs, Vec<T>::kLanes);

// conj(x[i]) dp[o] summed over `vectors` vectors of frequencies, added to sums[i, o, 2], for I x O of them.
//
// Both operands are pinned to registers: as operands of each product they are loaded 2.5 times as often, and Zen 4
// loads one vector a cycle. 2.2 -> 2.8 products per ns on 20 vectors, 2.3 -> 3.1 on 34 (AMD EPYC, Zen 4, one thread).
template <int I, int O, typename T>
__attribute__((noinline)) void outer_tile(Channels<const T> x, Channels<const T> dp, int vectors, T* sums) {
  using V = Vec<T>;
  V both[I][O], with_re[I][O], with_im[I][O];
  unroll<I * O>([&](auto n)
                    AFFNET_LAMBDA { both[n / O][n % O] = with_re[n / O][n % O] = with_im[n / O][n % O] = V(T(0)); });
  for (int v = 0; v < vectors; ++v) {
    V dp_re[O], dp_sum[O], dp_difference[O];
    unroll<O>([&](auto o) AFFNET_LAMBDA {
      dp_re[o] = pinned(V::load(dp.re + o * dp.stride));
      const V dp_im = pinned(V::load(dp.im + o * dp.stride));
      dp_sum[o] = dp_re[o] + dp_im, dp_difference[o] = dp_im - dp_re[o];
    });
    unroll<I>([&](auto i) AFFNET_LAMBDA {
      const V x_re = pinned(V::load(x.re + i * x.stride)), x_im = pinned(V::load(x.im + i * x.stride));
      unroll<O>([&](auto o) AFFNET_LAMBDA {
        with_re[i][o] += x_re * dp_difference[o];
        with_im[i][o] += x_im * dp_sum[o];
      });
      const V x_both = x_re - x_im;
      unroll<O>([&](auto o) AFFNET_LAMBDA { both[i][o] += x_both * dp_re[o]; });
    });
    x = x + V::kLanes, dp = dp + V::kLanes;
  }
  constexpr int kSums = round_up(2 * I * O, V::kLanes);
  V rows[kSums];
  unroll<kSums>([&](auto n) AFFNET_LAMBDA {
    if constexpr (n >= 2 * I * O) {
      rows[n] = V(T(0));
    } else {
      constexpr int i = n / 2 / O, o = n / 2 % O;
      rows[n] = n % 2 == 0 ? both[i][o] + with_im[i][o] : both[i][o] + with_re[i][o];
    }
  });
  unroll<kSums / V::kLanes>([&](auto n) AFFNET_LAMBDA {
    T* const to = sums + n * V::kLanes;
    (V::load(to) + sum_lanes(rows + n * V::kLanes)).store(to);
  });
}

// f(tile, i, rows, o, columns) for each tile of a weight: inputs i .. i + rows, outputs o .. o + columns.
template <typename F>
AFFNET_INLINE void each_outer_tile(int inputs, int outputs, F&& f) {
  const int tiles = (inputs + kOuterInputs - 1) / kOuterInputs;
  int i = 0, index = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int rows = (inputs - i + tiles - tile - 1) / (tiles - tile);  // tiles of equal size, or one less
    for (int o = 0; o < outputs; o += kOuterOutputs) {
      f(index++, i, rows, o, outputs - o < kOuterOutputs ? outputs - o : kOuterOutputs);
    }
    i += rows;
  }
}

template <typename T>
constexpr ptrdiff_t weight_sums(ptrdiff_t inputs, ptrdiff_t outputs) {
  return (inputs + kOuterInputs - 1) / kOuterInputs * ((outputs + kOuterOutputs - 1) / kOuterOutputs) * kOuterSums<T>;
}

// Adds the gradient of a layer's weight [inputs, outputs]: its input x times that of its output, dp.
template <typename T>
void add_weight_grad(Channels<const T> x, Channels<const T> dp, int vectors, int inputs, int outputs, T* sums) {
  each_outer_tile(inputs, outputs, [&](int tile, int i, int rows, int o, int columns) AFFNET_LAMBDA {
    const auto add = [&](auto r) AFFNET_LAMBDA {
      T* const to = sums + ptrdiff_t{tile} * kOuterSums<T>;
      if (columns == 2) {
        outer_tile<r, 2>(x + i * x.stride, dp + o * dp.stride, vectors, to);
      } else {
        outer_tile<r, 1>(x + i * x.stride, dp + o * dp.stride, vectors, to);
      }
    };
    switch (rows) {
      case 1:
        return add(std::integral_constant<int, 1>{});
      case 2:
        return add(std::integral_constant<int, 2>{});
    }
    if constexpr (kOuterInputs == 4) {
      if (rows == 3) return add(std::integral_constant<int, 3>{});
      add(std::integral_constant<int, 4>{});
    }
  });
}

template <typename T>
void store_weight_grad(const T* sums, int inputs, int outputs, T scale, T* re, T* im) {
  each_outer_tile(inputs, outputs, [&](int tile, int i, int rows, int o, int columns) AFFNET_LAMBDA {
    const T* from = sums + ptrdiff_t{tile} * kOuterSums<T>;
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c, from += 2) {
        const ptrdiff_t to = static_cast<ptrdiff_t>(i + r) * outputs + o + c;
        re[to] = from[0] * scale, im[to] = from[1] * scale;
      }
    }
  });
}

template <typename T>
constexpr ptrdiff_t bias_sums(ptrdiff_t channels) {
  return round_up(2 * channels, Vec<T>::kLanes);
}

// Adds the sum over the frequencies of each of `channels` to sums[channels, 2].
template <typename T>
void add_bias_grad(Channels<const T> dp, int vectors, int channels, T* sums) {
  using V = Vec<T>;
  constexpr int kChannels = V::kLanes / 2;  // whose parts' sums fill a vector
  for (int first = 0; first < channels; first += kChannels) {
    V rows[V::kLanes];
    const T* from[kChannels];
    unroll<kChannels>([&](auto c) AFFNET_LAMBDA {
      rows[2 * c] = rows[2 * c + 1] = V(T(0));
      from[c] = dp.re + (first + c < channels ? first + c : channels - 1) * dp.stride;
    });
    const ptrdiff_t im = dp.im - dp.re;
    for (int v = 0; v < vectors; ++v) {
      unroll<kChannels>([&](auto c) AFFNET_LAMBDA {
        rows[2 * c] += V::load(from[c] + v * V::kLanes);
        rows[2 * c + 1] += V::load(from[c] + v * V::kLanes + im);
      });
    }
    T* const to = sums + 2 * first;
    (V::load(to) + sum_lanes(rows)).store(to);
  }
}

template <typename T>
void store_bias_grad(const T* sums, int channels, T scale, T* re, T* im) {
  for (int c = 0; c < channels; ++c) re[c] = sums[2 * c] * scale, im[c] = sums[2 * c + 1] * scale;
}

}  // namespace affnet::AFFNET_CAPABILITY
