// The weights and biases of the one-launch kernel in shared memory, packed as a lane's operands of the products, and
// the norms that the guard needs of them.
#pragma once

#include "half_guard.cuh"

namespace affnet {

struct alignas(16) Float4 {
  float at[4];
};

// Where a lane's word for a quad of inputs is, from the beginning of a quad of outputs: lanes read four, two or one.
template <int kQuads>
AFFNET_DEVICE uint32_t weight_offset(int quad, int lane) {
  const int whole = kQuads / 4 * 4;
  if (quad < whole) return static_cast<uint32_t>(quad / 4 * 512 + lane * 16 + quad % 4 * 4);
  const bool pair = kQuads % 4 >= 2 && quad < whole + 2;
  if (pair) return static_cast<uint32_t>(whole * 128 + lane * 8 + quad % 4 * 4);
  return static_cast<uint32_t>((kQuads - 1) * 128 + lane * 4);
}

// The weights of one layer from all quads of inputs to one of outputs, as a lane's right operands, one word each: rows
// are the real and the imaginary part of input channel t, column g is a part of output channel g / 2.
template <int kQuads>
struct HalfWeights {
  uint32_t word[kQuads];

  AFFNET_DEVICE void load(uint32_t weights, int layer, int n) {
    const int lane = thread_index() % 32;
    const uint32_t at = weights + static_cast<uint32_t>((layer * kQuads + n) * kQuads * 128);
#pragma unroll
    for (int q = 0; q < kQuads / 4 * 4; q += 4) {
      const auto four = shared_load<Words4>(at + weight_offset<kQuads>(q, lane));
#pragma unroll
      for (int i = 0; i < 4; ++i) word[q + i] = four.at[i];
    }
    if constexpr (kQuads % 4 >= 2) {
      constexpr int kFirst = kQuads / 4 * 4;
      const auto two = shared_load<Words2>(at + weight_offset<kQuads>(kFirst, lane));
      word[kFirst] = two.at[0], word[kFirst + 1] = two.at[1];
    }
    if constexpr (kQuads % 2 == 1)
      word[kQuads - 1] = shared_load<uint32_t>(at + weight_offset<kQuads>(kQuads - 1, lane));
  }
};

// Copies both layers to shared memory, by all threads of a CTA; `factor` is of the first.
template <int kQuads>
AFFNET_DEVICE void stage_weights(const HalfArguments& a, const HalfLayout& at, int block, float factor) {
  const int64_t imaginary = int64_t{a.K} * a.D * a.D, own = int64_t{block} * a.D * a.D;
#pragma unroll 1
  for (int e = thread_index(); e < 2 * kQuads * kQuads * 32; e += thread_count()) {  // trips: weights
    const int lane = e % 32, quad = e / 32 % kQuads, n = e / 32 / kQuads % kQuads, layer = e / (32 * kQuads * kQuads);
    const int i = 4 * quad + lane % 4, o = 4 * n + lane / 8;
    float re = 0, im = 0;
    if (i < a.D && o < a.D) {
      const float* w = (layer == 0 ? a.w1 : a.w2) + own + i * a.D + o;
      const float scale = layer == 0 ? factor : 1.f;
      re = scale * global_load<float>(w), im = scale * global_load<float>(w + imaginary);
    }
    const bool of_imaginary = lane / 4 % 2 == 1;
    const uint32_t word = pack<Half::kFloat16>(of_imaginary ? im : re, of_imaginary ? re : -im);
    shared_store(
        at.weights + static_cast<uint32_t>((layer * kQuads + n) * kQuads * 128) + weight_offset<kQuads>(quad, lane),
        word);
  }
#pragma unroll 1
  for (int e = thread_index(); e < 2 * kQuads * 4; e += thread_count()) {  // trips: biases
    const int layer = e / (4 * kQuads), o = e % (4 * kQuads);
    float re = 0, im = 0;
    if (o < a.D) {
      const float* b = (layer == 0 ? a.b1 : a.b2) + int64_t{block} * a.D + o;
      const float scale = layer == 0 ? factor : 1.f;
      re = scale * global_load<float>(b), im = scale * global_load<float>(b + int64_t{a.K} * a.D);
    }
    shared_store(at.biases + static_cast<uint32_t>(16 * e), Float4{{re, im, re, im}});
  }
}

// Stores what the norms are made of: for each channel the sum of the magnitudes that lead to it, and its bias.
template <int kQuads>
AFFNET_DEVICE void stage_sums(const HalfArguments& a, const HalfLayout& at, int block) {
  const int64_t imaginary = int64_t{a.K} * a.D * a.D, own = int64_t{block} * a.D * a.D;
#pragma unroll 1
  for (int e = thread_index(); e < 2 * 4 * kQuads; e += thread_count()) {  // trips: biases
    const int layer = e / (4 * kQuads), o = e % (4 * kQuads);
    float sum = 0, bias = 0;
    if (o < a.D) {
      const float* w = (layer == 0 ? a.w1 : a.w2) + own + o;
#pragma unroll 1
      for (int i = 0; i < a.D; ++i) {  // trips: inputs
        sum += fabsf(global_load<float>(w + i * a.D)) + fabsf(global_load<float>(w + imaginary + i * a.D));
      }
      const float* b = (layer == 0 ? a.b1 : a.b2) + int64_t{block} * a.D + o;
      bias = fmaxf(fabsf(global_load<float>(b)), fabsf(global_load<float>(b + int64_t{a.K} * a.D)));
    }
    const auto to = at.sums + static_cast<uint32_t>(4 * (layer * 8 * kQuads + o));
    shared_store(to, sum);
    shared_store(to + 16 * kQuads, bias);
  }
}

// The largest of `count` non-negative numbers in shared memory, in every lane.
AFFNET_DEVICE float largest_of(uint32_t at, int count) {
  uint32_t found = 0;
#pragma unroll 1
  for (int i = thread_index() % 32; i < count; i += 32) {  // trips: channels
    const auto bits = shared_load<uint32_t>(at + static_cast<uint32_t>(4 * i));
    found = bits > found ? bits : found;
  }
  return float_of(warp_max(found));
}

template <int kQuads>
AFFNET_DEVICE Norms load_norms(const HalfLayout& at) {
  constexpr uint32_t kRow = 16 * kQuads;
  return {largest_of(at.sums, 4 * kQuads), largest_of(at.sums + kRow, 4 * kQuads),
          largest_of(at.sums + 2 * kRow, 4 * kQuads), largest_of(at.sums + 3 * kRow, 4 * kQuads)};
}

}  // namespace affnet
