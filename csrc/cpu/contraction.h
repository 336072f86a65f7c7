// Complex contractions over the channels of a block, one vector of slots at a time, and the outer products over the
// slots that are the gradients of their weights.
//
// A complex product takes three real ones: with t = w_re * (x_re + x_im), its parts are t - x_im * (w_re + w_im) and
// t + x_re * (w_im - w_re). The sums and differences of the weights are computed once per block, those of x as needed.
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

// Calls f with count, 1 .. kMost, as a compile-time constant.
template <int kMost, typename F>
AFFNET_INLINE void with_count(int count, F&& f) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, f);
  }
  f(std::integral_constant<int, kMost>{});
}

// Splits `count` items into as few chunks of at most kMost items as possible, of sizes that differ by at most one, and
// calls f(first item, size) for each; the size is a compile-time constant.
template <int kMost, typename F>
AFFNET_INLINE void each_chunk(int count, F&& f) {
  const int chunks = (count + kMost - 1) / kMost;
  int first = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int size = (count - first + chunks - chunk - 1) / (chunks - chunk);
    with_count<kMost>(size, [&](auto n) AFFNET_LAMBDA { f(first, n); });
    first += size;
  }
}

// A layer's weight in the order in which `contract` reads it: for each chunk of N outputs and each input, the N values
// of w_re, then of w_im - w_re, then of w_re + w_im.
template <typename T>
struct PackedWeight {
  T* data;  // [3 * inputs * outputs]
  int inputs, outputs;
};

// Packs the weights between one input and N outputs, whose real and imaginary parts are at re and im.
template <int N, typename T>
AFFNET_INLINE void pack_input(const T* __restrict re, const T* __restrict im, T scale, T* __restrict p) {
  using V = Vec<T>;
  if constexpr (kHasMasks) {
    const V w_re = load_first(re, N) * scale, w_im = load_first(im, N) * scale;
    store_first(w_re, p, N), store_first(w_im - w_re, p + N, N), store_first(w_re + w_im, p + 2 * N, N);
  } else {
    for (int o = 0; o < N; ++o) {
      const T w_re = re[o] * scale, w_im = im[o] * scale;
      p[o] = w_re, p[N + o] = w_im - w_re, p[2 * N + o] = w_re + w_im;
    }
  }
}

// Packs scale * w.
template <typename T>
void pack_weight(PackedWeight<T> to,
                 const T* re,  // [inputs, outputs]
                 const T* im, T scale) {
  each_chunk<kChunkOutputs>(to.outputs, [&](int first, auto n) {
    T* p = to.data + ptrdiff_t{3} * first * to.inputs;
    for (ptrdiff_t i = 0; i < to.inputs; ++i, p += 3 * n) {
      pack_input<n>(re + i * to.outputs + first, im + i * to.outputs + first, scale, p);
    }
  });
}

// Packs scale * conj(w)^T, the weight of the adjoint layer.
template <typename T>
void pack_adjoint_weight(PackedWeight<T> to,
                         const T* re,  // [outputs, inputs]
                         const T* im, T scale) {
  using V = Vec<T>;
  each_chunk<kChunkOutputs>(to.outputs, [&](int first, auto n) {
    T* p = to.data + ptrdiff_t{3} * first * to.inputs;
    const T* const re_rows = re + ptrdiff_t{first} * to.inputs;
    const T* const im_rows = im + ptrdiff_t{first} * to.inputs;
    int i = 0;
#if defined(__AVX512F__)
    if constexpr (V::kLanes == 16 && n == 8) {
      for (; i + 16 <= to.inputs; i += 16, p += 16 * 3 * n) {
        V parts[3][8];
        unroll<8>([&](auto o) AFFNET_LAMBDA {
          const V w_re = V::load(re_rows + ptrdiff_t{o} * to.inputs + i) * scale;
          const V w_im = V::load(im_rows + ptrdiff_t{o} * to.inputs + i) * -scale;
          parts[0][o] = w_re, parts[1][o] = w_im - w_re, parts[2][o] = w_re + w_im;
        });
        unroll<3>([&](auto part) AFFNET_LAMBDA {
          transpose_halves(parts[part]);
          unroll<8>([&](auto j) AFFNET_LAMBDA {
            store_low_half(parts[part][j], p + j * 24 + part * 8);
            store_high_half(parts[part][j], p + (j + 8) * 24 + part * 8);
          });
        });
      }
    }
#endif
    for (; i < to.inputs; ++i, p += 3 * n) {
      constexpr int kSize = n < V::kLanes ? V::kLanes : n;
      T column_re[kSize], column_im[kSize];
      for (ptrdiff_t o = 0; o < n; ++o) column_re[o] = re_rows[o * to.inputs + i];
      for (ptrdiff_t o = 0; o < n; ++o) column_im[o] = -im_rows[o * to.inputs + i];
      pack_input<n>(column_re, column_im, scale, p);
    }
  });
}

// A layer's bias [outputs]; null pointers stand for zeros.
template <typename T>
struct Bias {
  const T* re;
  const T* im;
};

// w^T x + b for N outputs from `first` on. finish(o, v, re, im) receives output o for the vector of slots that starts
// at v: what follows the contraction happens there, in registers, because a trip through memory costs as much as ten or
// twenty inputs.
template <int N, typename T, typename Finish>
__attribute__((noinline)) void contract_chunk(Channels<const T> x, PackedWeight<T> w, Bias<T> bias, int first,
                                              int vectors, Finish finish, Prefetcher& prefetcher) {
  using V = Vec<T>;
  const T* const packed = w.data + ptrdiff_t{3} * first * w.inputs;
  for (int v = 0; v < vectors; ++v) {
    V both[N], with_re[N], with_im[N];
    unroll<N>([&](auto o) AFFNET_LAMBDA {
      both[o] = V(T(0));
      with_re[o] = V(bias.im ? bias.im[first + o] : T(0));
      with_im[o] = V(bias.re ? bias.re[first + o] : T(0));
    });
    const T* p = packed;
    const T* re_at = x.re;
    const T* im_at = x.im;
    for (int i = 0; i < w.inputs; ++i) {
      const V re = V::load(re_at), im = V::load(im_at), both_parts = re + im;
      unroll<N>([&](auto o) AFFNET_LAMBDA {
        both[o] += both_parts * p[o];
        with_re[o] += re * p[N + o];
        with_im[o] = with_im[o] - im * p[2 * N + o];
      });
      p += 3 * N, re_at += x.stride, im_at += x.stride;
    }
    unroll<N>([&](auto o)
                  AFFNET_LAMBDA { finish(first + o, v * V::kLanes, both[o] + with_im[o], both[o] + with_re[o]); });
    prefetcher.advance();
    x = x + V::kLanes;
  }
}

// The number of chunks of outputs in a contraction.
constexpr int output_chunks(int outputs) { return (outputs + kChunkOutputs - 1) / kChunkOutputs; }

// For `vectors` vectors of slots: enough that the weights of a chunk of outputs are reused, and so few that x and the
// outputs stay in the first-level cache.
template <typename T, typename Finish>
AFFNET_INLINE void contract(Channels<const T> x, PackedWeight<T> w, Bias<T> bias, int vectors, const Finish& finish,
                            Prefetcher& prefetcher) {
  each_chunk<kChunkOutputs>(w.outputs, [&](int first, auto n) AFFNET_LAMBDA {
    contract_chunk<n>(x, w, bias, first, vectors, finish, prefetcher);
  });
}

// The gradient of a weight is summed in patches of kPatchInputs x kPatchOutputs elements, whose sums lie together and
// fill vectors. A patch takes 3 * kPatchInputs * kPatchOutputs accumulators.
inline constexpr int kPatchInputs = kChunkOutputs / 2, kPatchOutputs = 2;
template <typename T>
constexpr int kPatchSums = round_up(2 * kPatchInputs * kPatchOutputs, Vec<T>::kLanes);

// Adds conj(x[i]) dp[o], summed over `vectors` vectors of slots, to sums[i, o, 2] for I inputs and O outputs.
//
// Both operands are pinned to registers: as memory operands of each product they would be loaded 2.5 times as often,
// and Zen 4 loads one vector per cycle. 2.2 -> 2.8 products per ns on 20 vectors, 2.3 -> 3.1 on 34 (Zen 4, one thread).
template <int I, int O, typename T>
__attribute__((noinline)) void outer_patch(Channels<const T> x, Channels<const T> dp, int vectors, T* sums) {
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

// f(patch, i, rows, o, columns) for each patch of a weight: inputs i .. i + rows, outputs o .. o + columns; rows and
// columns are compile-time constants.
template <typename F>
AFFNET_INLINE void each_patch(int inputs, int outputs, F&& f) {
  int patch = 0;
  each_chunk<kPatchInputs>(inputs, [&](int i, auto rows) AFFNET_LAMBDA {
    each_chunk<kPatchOutputs>(outputs, [&](int o, auto columns) AFFNET_LAMBDA { f(patch++, i, rows, o, columns); });
  });
}

template <typename T>
constexpr ptrdiff_t weight_sums(ptrdiff_t inputs, ptrdiff_t outputs) {
  return (inputs + kPatchInputs - 1) / kPatchInputs * ((outputs + kPatchOutputs - 1) / kPatchOutputs) * kPatchSums<T>;
}

// Adds the gradient of a layer's weight [inputs, outputs]: the outer products of the layer's input x and the gradient
// dp of its output.
template <typename T>
void add_weight_grad(Channels<const T> x, Channels<const T> dp, int vectors, int inputs, int outputs, T* sums) {
  each_patch(inputs, outputs, [&](int patch, int i, auto rows, int o, auto columns) AFFNET_LAMBDA {
    outer_patch<rows, columns>(x + i * x.stride, dp + o * dp.stride, vectors, sums + ptrdiff_t{patch} * kPatchSums<T>);
  });
}

template <typename T>
void store_weight_grad(const T* sums, int inputs, int outputs, T scale, T* re, T* im) {
  each_patch(inputs, outputs, [&](int patch, int i, int rows, int o, int columns) {
    const T* from = sums + ptrdiff_t{patch} * kPatchSums<T>;
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

// Adds the sum of dp over the slots to sums[channels, 2].
template <typename T>
void add_bias_grad(Channels<const T> dp, int vectors, int channels, T* sums) {
  using V = Vec<T>;
  constexpr int kChannels = V::kLanes / 2;  // their real and imaginary sums fill a vector
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
