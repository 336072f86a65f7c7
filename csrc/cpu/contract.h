// Complex contractions over the channels of a block, one vector of frequencies at a time, and over the frequencies.
//
// A complex product takes three real ones: with t = w_re * (x_re + x_im), its parts are t - x_im * (w_re + w_im) and
// t + x_re * (w_im - w_re). The sums and differences of a weight are made once for a block, those of x on the way.
#pragma once

#include "vec.h"

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

// What becomes of a contraction: w^T x + b; relu(w^T x + b); conj(w) x; the same, added to what is there.
enum class Contraction { kForward, kForwardRelu, kAdjoint, kAddAdjoint };

constexpr bool is_adjoint(Contraction kind) { return kind >= Contraction::kAdjoint; }

// N outputs from `first` on.
template <int N, Contraction kKind, typename T>
__attribute__((noinline)) void contract_tile(Channels<const T> x, int inputs, const Weight<T>& w, Bias<T> bias,
                                             int first, Channels<T> y, int vectors) {
  constexpr bool kAdjoint = is_adjoint(kKind);
  using V = Vec<T>;
  const ptrdiff_t input_stride = kAdjoint ? 1 : w.outputs, output_stride = kAdjoint ? w.outputs : 1;
  const ptrdiff_t difference = w.difference - w.re, sum = w.sum - w.re;
  for (int v = 0; v < vectors; ++v) {
    const T* w_re = w.re + first * output_stride;
    V both[N], with_re[N], with_im[N];
    unroll<N>([&](auto o) AFFNET_LAMBDA {
      both[o] = V(T(0));
      with_re[o] = V(kAdjoint ? T(0) : bias.im[first + o]);
      with_im[o] = V(kAdjoint ? T(0) : -bias.re[first + o]);
    });
    for (int i = 0; i < inputs; ++i) {
      const V re = V::load(x.re + i * x.stride), im = V::load(x.im + i * x.stride), both_parts = re + im;
      unroll<N>([&](auto o) AFFNET_LAMBDA {
        const T* const at = w_re + o * output_stride;
        both[o] += both_parts * at[0];
        with_re[o] += re * at[kAdjoint ? sum : difference];
        with_im[o] += im * at[kAdjoint ? difference : sum];
      });
      w_re += input_stride;
    }
    unroll<N>([&](auto o) AFFNET_LAMBDA {
      V re = kAdjoint ? both[o] + with_im[o] : both[o] - with_im[o];
      V im = kAdjoint ? both[o] - with_re[o] : both[o] + with_re[o];
      T* const to_re = y.re + (first + o) * y.stride;
      T* const to_im = y.im + (first + o) * y.stride;
      if constexpr (kKind == Contraction::kForwardRelu) {
        re = activate<Activation::kRelu>(re), im = activate<Activation::kRelu>(im);
      } else if constexpr (kKind == Contraction::kAddAdjoint) {
        re += V::load(to_re), im += V::load(to_im);
      }
      re.store(to_re), im.store(to_im);
    });
    x = x + V::kLanes, y = y + V::kLanes;
  }
}

// For some vectors of frequencies: so many at once that a tile's weights are read from memory less often, and so few
// that x and y stay in the first cache.
template <Contraction kKind, typename T>
void contract(Channels<const T> x, const Weight<T>& w, Bias<T> bias, Channels<T> y, int vectors) {
  constexpr bool kAdjoint = is_adjoint(kKind);
  const int inputs = kAdjoint ? w.outputs : w.inputs, outputs = kAdjoint ? w.inputs : w.outputs;
  const int tiles = (outputs + kTileOutputs - 1) / kTileOutputs;
  int first = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int count = (outputs - first + tiles - tile - 1) / (tiles - tile);  // tiles of equal size, or one less
    const auto run = [&](auto n) AFFNET_LAMBDA { contract_tile<n, kKind>(x, inputs, w, bias, first, y, vectors); };
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

// conj(x[i]) dp[o] summed over `vectors` vectors of frequencies, added to re[i, o] and im[i, o], for I x O of them.
template <int I, int O, typename T>
__attribute__((noinline)) void outer_tile(Channels<const T> x, Channels<const T> dp, int vectors, T* re, T* im,
                                          ptrdiff_t stride) {
  using V = Vec<T>;
  V both[I][O], with_re[I][O], with_im[I][O];
  unroll<I * O>([&](auto n)
                    AFFNET_LAMBDA { both[n / O][n % O] = with_re[n / O][n % O] = with_im[n / O][n % O] = V(T(0)); });
  for (int v = 0; v < vectors; ++v) {
    V dp_re[O], dp_sum[O], dp_difference[O];
    unroll<O>([&](auto o) AFFNET_LAMBDA {
      const V b_re = V::load(dp.re + o * dp.stride), b_im = V::load(dp.im + o * dp.stride);
      dp_re[o] = b_re, dp_sum[o] = b_re + b_im, dp_difference[o] = b_im - b_re;
    });
    unroll<I>([&](auto i) AFFNET_LAMBDA {
      const V a_re = V::load(x.re + i * x.stride), a_im = V::load(x.im + i * x.stride), a_both = a_re - a_im;
      unroll<O>([&](auto o) AFFNET_LAMBDA {
        both[i][o] += a_both * dp_re[o];
        with_re[i][o] += a_re * dp_difference[o];
        with_im[i][o] += a_im * dp_sum[o];
      });
    });
    x = x + V::kLanes, dp = dp + V::kLanes;
  }
  constexpr int kSums = (2 * I * O + V::kLanes - 1) / V::kLanes * V::kLanes;
  V rows[kSums];
  unroll<kSums>([&](auto n) AFFNET_LAMBDA {
    if constexpr (n >= 2 * I * O) {
      rows[n] = V(T(0));
    } else {
      constexpr int i = n / 2 / O, o = n / 2 % O;
      rows[n] = n % 2 == 0 ? both[i][o] + with_im[i][o] : both[i][o] + with_re[i][o];
    }
  });
  T sums[kSums];
  unroll<kSums / V::kLanes>([&](auto n) AFFNET_LAMBDA { sum_lanes(rows + n * V::kLanes).store(sums + n * V::kLanes); });
  unroll<I * O>([&](auto n) AFFNET_LAMBDA {
    re[n / O * stride + n % O] += sums[2 * n];
    im[n / O * stride + n % O] += sums[2 * n + 1];
  });
}

// Adds the gradient of a layer's weight [inputs, outputs]: its input x times that of its output, dp.
template <typename T>
void add_weight_grad(Channels<const T> x, Channels<const T> dp, int vectors, int inputs, int outputs, T* re, T* im) {
  constexpr int kInputs = kTileOutputs / 2;  // 3 * kInputs * 2 accumulators
  const int tiles = (inputs + kInputs - 1) / kInputs;
  int i = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int count = (inputs - i + tiles - tile - 1) / (tiles - tile);
    const Channels<const T> x_tile = x + i * x.stride;
    for (int o = 0; o < outputs; o += 2) {
      const Channels<const T> dp_tile = dp + o * dp.stride;
      const auto add = [&](auto rows) AFFNET_LAMBDA {
        T* const to_re = re + static_cast<ptrdiff_t>(i) * outputs + o;
        T* const to_im = im + static_cast<ptrdiff_t>(i) * outputs + o;
        if (o + 1 < outputs) {
          outer_tile<rows, 2>(x_tile, dp_tile, vectors, to_re, to_im, outputs);
        } else {
          outer_tile<rows, 1>(x_tile, dp_tile, vectors, to_re, to_im, outputs);
        }
      };
      switch (count) {
        case 1:
          add(std::integral_constant<int, 1>{});
          break;
        case 2:
          add(std::integral_constant<int, 2>{});
          break;
        default:
          if constexpr (kInputs == 4) {
            if (count == 3) {
              add(std::integral_constant<int, 3>{});
            } else {
              add(std::integral_constant<int, 4>{});
            }
          }
      }
    }
    i += count;
  }
}

// Adds the sum over the frequencies of each of `channels`.
template <typename T>
void add_bias_grad(Channels<const T> dp, int vectors, int channels, T* re, T* im) {
  using V = Vec<T>;
  for (int c = 0; c < channels; ++c) {
    V sum_re(T(0)), sum_im(T(0));
    for (int v = 0; v < vectors; ++v) {
      sum_re += V::load(dp.re + c * dp.stride + v * V::kLanes);
      sum_im += V::load(dp.im + c * dp.stride + v * V::kLanes);
    }
    for (int l = 0; l < V::kLanes; ++l) re[c] += sum_re.raw[l], im[c] += sum_im.raw[l];
  }
}

}  // namespace affnet::AFFNET_CAPABILITY
