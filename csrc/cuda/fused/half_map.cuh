// The mask of the one-launch kernel and its product with the spectrum, in place, by all warps: 16 slots are the rows of
// a product, channels its columns. As in mma.cuh, the result of one layer is the left operand of the next without any
// exchange: columns 2 t and 2 t + 1 of a quad are the real and the imaginary part of channel t.
#pragma once

#include "half_transform.cuh"
#include "half_weights.cuh"

namespace affnet {

// How the first layer's results become the second one's operand: quickly, for ReLU and SiLU of tiles that need no
// common power of two 2^e, or in a general way, for all. SiLU's argument comes halved: v / (1 + exp(-v)) = u + u
// tanh(u) with u = v / 2.

// What the general way needs besides its operands, of one tile.
struct MapScales {
  Activation activation;
  float scale, unscale;  // 2^e, 2^-e
  float threshold;       // lambda, times 2^e in the general way
};

// act(v) as good as float16 results need it, but for SiLU of 2 v.
template <Activation kActivation>
AFFNET_DEVICE float activate_approximately(float v) {
  if constexpr (kActivation == Activation::kRelu || kActivation == Activation::kIdentity) {
    return activate<kActivation>(v);
  } else if constexpr (kActivation == Activation::kSilu) {
    return v + v * tanh_approximate(v);
  } else if constexpr (kActivation == Activation::kTanh) {
    return tanh_approximate(v);
  } else if constexpr (kActivation == Activation::kGelu) {
    // erfc(z) = exp(-z^2) (a1 q + ... + a5 q^5) within 1.5e-7, z >= 0 (Abramowitz and Stegun, 7.1.26)
    const float z = fabsf(v) * 0.70710678f, q = reciprocal_approximate(1.f + 0.3275911f * z);
    const float polynomial =
        q * (0.254829592f + q * (-0.284496736f + q * (1.421413741f + q * (-1.453152027f + q * 1.061405429f))));
    const float tail = 0.5f * polynomial * exp2_approximate(-1.44269504f * z * z);
    return v < 0 ? v * tail : v - v * tail;
  } else {
    static_assert(kNoSuchActivation<kActivation>, "activate_approximately: an activation without a branch here");
  }
}

// The pairs of a result in slots g and g + 8 as the next layer's operand.
template <Activation kActivation, bool kGeneral>
AFFNET_DEVICE void activated(const float (&c)[4], uint32_t (&pairs)[2], const MapScales& s) {
  float v[4];
  if constexpr (kGeneral) {
    switch (s.activation) {
#define AFFNET_CASE(name, enumerator)                                                    \
  case Activation::enumerator:                                                           \
    for (int i = 0; i < 4; ++i) {                                                        \
      v[i] = s.scale * activate_approximately<Activation::enumerator>(s.unscale * c[i]); \
    }                                                                                    \
    break;
      AFFNET_ACTIVATIONS(AFFNET_CASE)
#undef AFFNET_CASE
    }
  } else if constexpr (kActivation == Activation::kRelu) {
    for (int i = 0; i < 4; ++i) v[i] = c[i];
  } else if constexpr (kActivation == Activation::kSilu) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = activate_approximately<kActivation>(c[i]);
  } else {
    static_assert(kNoSuchActivation<kActivation>, "activated: an activation without a quick way");
  }
  if constexpr (!kGeneral && kActivation == Activation::kRelu) {
    pairs[0] = pack_relu(v[0], v[1]), pairs[1] = pack_relu(v[2], v[3]);
  } else {
    pairs[0] = pack<Half::kFloat16>(v[0], v[1]), pairs[1] = pack<Half::kFloat16>(v[2], v[3]);
  }
}

// Y = factor shrink(P2) X of one channel and slot, all (re, im). In float16 but for the general way, whose P2 and
// factor may be beyond it: its factors are bfloat16.
template <bool kGeneral>
AFFNET_DEVICE uint32_t masked(float re, float im, uint32_t X, uint32_t factors, float threshold) {
  if constexpr (kGeneral) {
    const float factor = first_of<Half::kBfloat16>(factors);
    const float m_re = factor * soft_shrink(re, threshold), m_im = factor * soft_shrink(im, threshold);
    const float x_re = first_of<Half::kFloat16>(X), x_im = second_of<Half::kFloat16>(X);
    return pack<Half::kFloat16>(m_re * x_re - m_im * x_im, m_re * x_im + m_im * x_re);
  } else {
    const uint32_t most = pack<Half::kFloat16>(threshold, threshold);
    const uint32_t least = pack<Half::kFloat16>(-threshold, -threshold);
    const uint32_t P2 = pack<Half::kFloat16>(re, im);
    const uint32_t M = subtract_pairs(P2, min_pairs(max_pairs(P2, least), most));
    return multiply_complex(multiply_pairs(M, factors), X);
  }
}

// A tile of 16 slots: for each quad the pair (re, im) of channel t in slots g and g + 8.
template <int kQuads>
struct SlotTile {
  uint32_t quad[kQuads][2];

  AFFNET_DEVICE static uint32_t offset(uint32_t stride, int first_quad, int tile) {
    const int lane = thread_index() % 32;
    const int row = 8 * first_quad + lane % 8 + lane / 16 * 8, slot = 16 * tile + lane / 8 % 2 * 8;
    return static_cast<uint32_t>(row) * stride + static_cast<uint32_t>(2 * slot);
  }

  AFFNET_DEVICE void load(uint32_t stride, int tile) {
#pragma unroll
    for (int q = 0; q < kQuads / 2; ++q) {
      uint32_t m[4];
      load_matrices_transposed(m, offset(stride, 2 * q, tile));
      quad[2 * q][0] = m[0], quad[2 * q][1] = m[1], quad[2 * q + 1][0] = m[2], quad[2 * q + 1][1] = m[3];
    }
    if constexpr (kQuads % 2 == 1) load_matrices_transposed(quad[kQuads - 1], last(stride, tile));
  }

  AFFNET_DEVICE void store(uint32_t stride, int tile) const {
#pragma unroll
    for (int q = 0; q < kQuads / 2; ++q) {
      const uint32_t m[4] = {quad[2 * q][0], quad[2 * q][1], quad[2 * q + 1][0], quad[2 * q + 1][1]};
      store_matrices_transposed(offset(stride, 2 * q, tile), m);
    }
    if constexpr (kQuads % 2 == 1) store_matrices_transposed(last(stride, tile), quad[kQuads - 1]);
  }

  // c += this times weights.
  AFFNET_DEVICE void multiply(float (&c)[4], const HalfWeights<kQuads>& w) const {
#pragma unroll
    for (int q = 0; q < kQuads / 2; ++q) {
      const uint32_t a[4] = {quad[2 * q][0], quad[2 * q][1], quad[2 * q + 1][0], quad[2 * q + 1][1]};
      const uint32_t b[2] = {w.word[2 * q], w.word[2 * q + 1]};
      mma<Half::kFloat16>(c, a, b);
    }
    if constexpr (kQuads % 2 == 1) {
      const uint32_t b[1] = {w.word[kQuads - 1]};
      mma<Half::kFloat16>(c, quad[kQuads - 1], b);
    }
  }

 private:
  // Of an odd last quad, whose two matrices lanes 0 to 15 name; the others name the same again.
  AFFNET_DEVICE static uint32_t last(uint32_t stride, int tile) {
    const int lane = thread_index() % 16;
    const int row = 8 * (kQuads - 1) + lane % 8, slot = 16 * tile + lane / 8 * 8;
    return static_cast<uint32_t>(row) * stride + static_cast<uint32_t>(2 * slot);
  }
};

// Y = M X in all slots, times the powers of two that half_guard.cuh explains.
template <int kTiles, int kQuads, Activation kActivation, bool kGeneral>
AFFNET_DEVICE void map_slots(const HalfArguments& a, const HalfLayout& at, const Guard& guard) {
  constexpr bool kKeep = kQuads <= 4 && !kGeneral;      // weights and biases in registers
  constexpr int kTogether = kKeep || kGeneral ? 1 : 2;  // tiles for which they are loaded
  constexpr uint32_t kStride = HalfSpectrum<kTiles>::kStride;
  constexpr int kSlotTiles = static_cast<int>(HalfSpectrum<kTiles>::kSlots / 16);
  const int t = thread_index() % 4, warp = thread_index() / 32, warps = thread_count() / 32;
  const MapScales s{a.activation, power_of_two(guard.e), power_of_two(-guard.e),
                    kGeneral ? power_of_two(guard.e) * a.threshold : a.threshold};
  uint32_t reduced[kQuads];  // 2^f_d, twice
  uint32_t common[kQuads];   // 2^(e - e_d), general way only
  HalfWeights<kQuads> kept[2][kKeep ? kQuads : 1];
  Float4 biases[2][kKeep ? kQuads : 1];
#pragma unroll
  for (int n = 0; n < kQuads; ++n) {
    const auto most = shared_load<float>(at.magnitudes + static_cast<uint32_t>(4 * (4 * n + t)));
    const float factor = power_of_two(-guard.reduction<kGeneral>(most));
    reduced[n] = pack<kGeneral ? Half::kBfloat16 : Half::kFloat16>(factor, factor);
    if (thread_index() < 4) {  // for the inverse transform
      shared_store(at.exponents + static_cast<uint32_t>(4 * (4 * n + t)), guard.taken_back<kGeneral>(most));
    }
    if constexpr (kGeneral) {
      const float own = power_of_two(guard.e - Guard::plane(most, guard.root));
      common[n] = pack<Half::kFloat16>(own, own);
    }
    if constexpr (kKeep) {
#pragma unroll
      for (int layer = 0; layer < 2; ++layer) {
        kept[layer][n].load(at.weights, layer, n);
        biases[layer][n] = shared_load<Float4>(at.biases + static_cast<uint32_t>(16 * (4 * (layer * kQuads + n) + t)));
      }
    }
  }
  const auto begin_sum = [&](float (&c)[4], const Float4& bias) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = kGeneral ? s.scale * bias.at[i] : bias.at[i];
  };
#pragma unroll 1
  for (int first = warp * kTogether; first < kSlotTiles; first += warps * kTogether) {  // trips: slots
    SlotTile<kQuads> X[kTogether], O1[kTogether];
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      const int tile = first + m < kSlotTiles ? first + m : first;
      X[m].load(kStride, tile);
      if constexpr (kGeneral) {
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
#pragma unroll
          for (int r = 0; r < 2; ++r) X[m].quad[q][r] = multiply_pairs(X[m].quad[q][r], common[q]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kQuads; ++n) {
      HalfWeights<kQuads> w;
      Float4 bias;
      if constexpr (kKeep) {
        w = kept[0][n], bias = biases[0][n];
      } else {
        w.load(at.weights, 0, n);
        bias = shared_load<Float4>(at.biases + static_cast<uint32_t>(16 * (4 * n + t)));
      }
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        float c[4];
        begin_sum(c, bias);
        X[m].multiply(c, w);
        activated<kActivation, kGeneral>(c, O1[m].quad[n], s);
      }
    }
    if constexpr (kGeneral) X[0].load(kStride, first);  // without the common power of two
#pragma unroll
    for (int n = 0; n < kQuads; ++n) {
      HalfWeights<kQuads> w;
      Float4 bias;
      if constexpr (kKeep) {
        w = kept[1][n], bias = biases[1][n];
      } else {
        w.load(at.weights, 1, n);
        bias = shared_load<Float4>(at.biases + static_cast<uint32_t>(16 * (4 * (kQuads + n) + t)));
      }
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        float c[4];
        begin_sum(c, bias);
        O1[m].multiply(c, w);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          X[m].quad[n][r] = masked<kGeneral>(c[2 * r], c[2 * r + 1], X[m].quad[n][r], reduced[n], s.threshold);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTogether; ++m) {
      if (first + m < kSlotTiles) X[m].store(kStride, first + m);
    }
  }
}

}  // namespace affnet
