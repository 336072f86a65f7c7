// Powers of two that keep every float16 number of the one-launch kernel below 65504, whatever the input, and most of
// them well above the subnormal range.
//
// With m the largest element of a tile, R1, R2 the largest sums of magnitudes in a row of the stacked real weights and
// B1, B2 the largest biases,
//
//   |X| <= root m,   |O1| <= |P1| <= R1 |X| + B1,   |M| <= |P2| <= R2 |O1| + B2,   |Y| <= sqrt(2) |M| |X|
//
// because |act(v)| <= |v| for every activation and soft-shrink takes away only; tanh's |O1| is at most 1, too. What is
// stored in float16 is
//
//   2^e_d X_d of channel d,   2^e O1,   2^(e + e_d + f_d) Y_d,
//
// with e = e_d = 0 unless the bound of X, O1 or P2 exceeds 60000, or that of Y by far; only then is the general, slower
// code of the map taken, which has P2 in float32.
// The exponents f_d <= 0 are always there: the bound of Y is quadratic in m and pessimistic by 2^10 or so, which
// float16 has room for. They are applied where the mask is multiplied, and taken back by the constants of the inverse
// transform.
#pragma once

#include "../device.h"
#include "half.h"

namespace affnet {

constexpr float kHalfMost = 60000.f;  // of 65504: room for the rounding of intermediate results
constexpr float kNoLimit = 3e38f;
constexpr int kHalfTakenBack = 16;  // the largest power of two that the inverse's constants can take

// v < 2^n, the smallest such n of a finite v >= 0; at least -126.
AFFNET_DEVICE int exponent_above(float v) { return static_cast<int>(bits_of(v) >> 23) - 126; }

// 2^n, n clamped to what float32 has.
AFFNET_DEVICE float power_of_two(int n) {
  n = n < -126 ? -126 : n > 127 ? 127 : n;
  return float_of(static_cast<uint32_t>(n + 127) << 23);
}

// The largest row sums and biases of both layers.
struct Norms {
  float r1, b1, r2, b2;
};

// What the bounds say of one tile.
struct Guard {
  bool fast;  // e = 0, and the inverse's constants take f_d back
  int e;
  float root;
  float masked;  // 2^e spread |Y_d| <= masked m_d

  AFFNET_DEVICE Guard(const Norms& norms, float most, float root, float spread, Activation activation) : root(root) {
    const float limit = activation == Activation::kTanh ? 1.f : kNoLimit;  // of O1
    const float X = root * most, O1 = fminf(norms.r1 * X + norms.b1, limit), M = norms.r2 * O1 + norms.b2;
    masked = 1.4143f * spread * root * M;
    fast = X <= kHalfMost && O1 <= kHalfMost && M <= kHalfMost && masked * most <= kHalfMost * 65000.f;
    e = 0;
    if (!fast) {                         // rare
      constexpr float kUnit = 0x1p-64f;  // so that no bound overflows
      const float small_X = root * (kUnit * most);
      const float small_O1 = fminf(norms.r1 * small_X + kUnit * norms.b1, kUnit * limit);
      e = min_of(0, 15 - 64 - exponent_above(small_X > small_O1 ? small_X : small_O1));
      const float scaled_O1 = fminf(norms.r1 * (root * scaled(most, e)) + scaled(norms.b1, e), scaled(limit, e));
      masked = 1.4143f * spread * root * (norms.r2 * scaled_O1 + scaled(norms.b2, e));
    }
  }

  // Whether a channel, whose largest element is m_d, has spectra beyond float16.
  AFFNET_DEVICE static bool too_large(float most, float root) { return root * most > kHalfMost; }

  // Its e_d.
  AFFNET_DEVICE static int plane(float most, float root) {
    return too_large(most, root) ? 15 - exponent_above(most) - exponent_above(root) : 0;
  }

  // -f_d. In the general way the least; in the fast one, whose e and e_d are 0, a multiple of four so that the
  // inverse's constants change seldom.
  template <bool kGeneral>
  AFFNET_DEVICE int reduction(float most) const {
    constexpr float kShare = 1 / kHalfMost;
    if constexpr (kGeneral) return max_of(0, exponent_above(kShare * masked * scaled(most, plane(most, root))));
    return (max_of(0, exponent_above(kShare * masked * most)) + 3) & ~3;
  }

  // 2^-n Y_d is what is stored.
  template <bool kGeneral>
  AFFNET_DEVICE int taken_back(float most) const {
    return reduction<kGeneral>(most) - (kGeneral ? e + plane(most, root) : 0);
  }

  // 2^n v.
  AFFNET_DEVICE static float scaled(float v, int n) { return v * power_of_two(n / 2) * power_of_two(n - n / 2); }

  AFFNET_DEVICE static int max_of(int a, int b) { return a > b ? a : b; }
  AFFNET_DEVICE static int min_of(int a, int b) { return a < b ? a : b; }
};

}  // namespace affnet
