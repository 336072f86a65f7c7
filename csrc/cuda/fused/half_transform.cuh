// The transforms of one plane by one warp, as products on tensor cores (dft_table.h, half.h): forward from x to the
// spectrum, inverse from the masked spectrum to y. Results stay in registers from one product to the next.
//
// The forward products give four quadrants, which one lane holds for frequencies (k, w) = (8 i + g, 8 j + 2 t + e):
// CC (cosine of both), SC (sine of k, cosine of w), CS and SS, the last two with the other sign. Then
// X[+-k, w] = CC +- SS + i (CS -+ SC). Slot (sin, 0) is the Nyquist frequency, so row k = 0 holds X[0, w] = CC + i CS
// and X[H/2, w] = SC + i SS. The Nyquist column has its own sign: column w = 0 holds X[+-k, 0] = CC -+ i SC and X[+-k,
// W/2] = CS -+ i SS.
#pragma once

#include "half_planes.cuh"

namespace affnet {

// Tile (row, column) of a section of the table; zeros beyond the table's own tiles.
template <int kTiles>
AFFNET_DEVICE Words4 dft_tile(const uint32_t* table, DftSection section, int length, int row, int column) {
  const int tiles = kTiles == 1 ? 1 : (length + 15) / 16;
  if (kTiles > 1 && (row >= tiles || column >= tiles)) return Words4{{0, 0, 0, 0}};
  const int tile = (static_cast<int>(section) * tiles + row) * tiles + column;
  return global_load<Words4>(table + tile * kDftTileWords + thread_index() % 32 * 4);
}

template <int kTiles>
struct DftTiles {
  Words4 at[kTiles][kTiles];

  AFFNET_DEVICE DftTiles(const uint32_t* table, DftSection section, int length) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int c = 0; c < kTiles; ++c) at[i][c] = dft_tile<kTiles>(table, section, length, i, c);
    }
  }

  // Times a power of two, exactly.
  AFFNET_DEVICE void scale(float factor) {
    const uint32_t pair = pack<Half::kFloat16>(factor, factor);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int c = 0; c < kTiles; ++c) {
#pragma unroll
        for (int q = 0; q < 4; ++q) at[i][c].at[q] = multiply_pairs(at[i][c].at[q], pair);
      }
    }
  }
};

// The place of a plane's spectrum in shared memory.
template <int kTiles>
struct HalfSpectrum {
  static constexpr uint32_t kSlots = 128 * kTiles * kTiles + 16 * kTiles, kStride = 2 * kSlots + 16;
  static constexpr uint32_t kSign = 2 * 64 * kTiles * kTiles, kMirrored = 2 * kSign;  // bytes

  // Offset of the row of a matrix that a lane names: matrices (+k re, +k im, -k re, -k im) of rows 8 i and columns 8 j.
  AFFNET_DEVICE static uint32_t matrix_row(int d, int lane, int i, int j) {
    const int q = lane / 8;
    return static_cast<uint32_t>(2 * d + q % 2) * kStride + static_cast<uint32_t>(q / 2) * kSign +
           static_cast<uint32_t>(((j * kTiles + i) * 8 + lane % 8) * 16);
  }

  // Offset of the mirrored frequency (-k, 0), or (-k, W/2), of a part of channel d.
  AFFNET_DEVICE static uint32_t mirrored(int d, int imaginary, int nyquist, int k) {
    return static_cast<uint32_t>(2 * d + imaginary) * kStride + kMirrored +
           static_cast<uint32_t>(2 * (nyquist * 8 * kTiles + k));
  }
};

// The constants of the forward transform that a warp keeps. With three tiles there are registers for the height's only.
template <int kTiles>
struct ForwardConstants {
  static constexpr bool kKeep = kTiles < 3;
  const HalfArguments& a;
  DftTiles<kTiles> height;
  DftTiles<kKeep ? kTiles : 1> kept_width, kept_rest;

  AFFNET_DEVICE explicit ForwardConstants(const HalfArguments& a)
      : a(a),
        height(a.height_constants, DftSection::kLeft, a.H),
        kept_width(a.width_constants, DftSection::kRight, a.W),
        kept_rest(a.height_constants, DftSection::kLeftRest, a.H) {}

  // What bfloat16 leaves of tile (i, h).
  AFFNET_DEVICE Words4 rest(int i, int h) const {
    if constexpr (kKeep) return kept_rest.at[i][h];
    return dft_tile<kTiles>(a.height_constants, DftSection::kLeftRest, a.H, i, h);
  }

  AFFNET_DEVICE Words4 width(int j, int w) const {
    if constexpr (kKeep) return kept_width.at[j][w];
    return dft_tile<kTiles>(a.width_constants, DftSection::kRight, a.W, j, w);
  }
};

// The largest magnitude of a plane, in every lane.
template <int kCount>
AFFNET_DEVICE float largest(const uint32_t (&words)[kCount]) {
  uint32_t pair = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pair = larger_magnitudes(pair, words[i]);
  const uint32_t low = pair & 0x7fff, high = pair >> 16 & 0x7fff;
  return first_of<Half::kBfloat16>(warp_max(low > high ? low : high));
}

// The lower number of `special` if `use`, and the rest of `general`.
AFFNET_DEVICE uint32_t with_low(uint32_t general, uint32_t special, bool use) {
  const uint32_t mask = use ? 0xffff : 0;
  return (special & mask) | (general & ~mask);
}

// Stores the frequencies of one tile (i, j), whose quadrants are c (CC, then SC) and s (CS, then SS).
template <int kTiles>
AFFNET_DEVICE void store_frequencies(const float (&c)[4], const float (&s)[4], int i, int j, int d) {
  using Spectrum = HalfSpectrum<kTiles>;
  const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
  const bool first = i == 0 && g == 0;
  const uint32_t CC = pack<Half::kFloat16>(c[0], c[1]), SC = pack<Half::kFloat16>(c[2], c[3]);
  const uint32_t CS = pack<Half::kFloat16>(s[0], s[1]), SS = pack<Half::kFloat16>(s[2], s[3]);
  uint32_t m[4] = {
      first ? CC : add_pairs(CC, SS),
      first ? CS : subtract_pairs(CS, SC),
      first ? SC : subtract_pairs(CC, SS),
      first ? SS : add_pairs(CS, SC),
  };
  if (j == 0 && t == 0) {
    constexpr uint32_t kLow = 0xffff, kMinus = 0x8000;
    const uint32_t re[2] = {CC, CS}, im[2] = {SC, SS};
#pragma unroll
    for (int n = 0; n < 2; ++n) {  // w = 0 and W / 2, where each corner k = 0 is its own mirror image
      m[2 * n] = with_low(m[2 * n], re[n], true);
      m[2 * n + 1] = with_low(m[2 * n + 1], first ? 0 : im[n] ^ kMinus, true);
      shared_store(Spectrum::mirrored(d, 0, n, 8 * i + g), static_cast<uint16_t>((first ? im[n] : re[n]) & kLow));
      shared_store(Spectrum::mirrored(d, 1, n, 8 * i + g), static_cast<uint16_t>(first ? 0 : im[n] & kLow));
    }
  }
  store_matrices(Spectrum::matrix_row(d, lane, i, j), m);
}

// From plane d of x in shared memory to its spectrum times 2^e_d. Returns the largest element of the plane.
template <int kTiles>
AFFNET_DEVICE float transform_plane(const ForwardConstants<kTiles>& constants, uint32_t x, int d, float root) {
  const int lane = thread_index() % 32;
  uint32_t words[kTiles * kTiles * 4];
#pragma unroll
  for (int h = 0; h < kTiles; ++h) {
#pragma unroll
    for (int w = 0; w < kTiles; ++w) {
      uint32_t m[4];
      load_matrices_transposed(m, x + HalfPlanes<kTiles>::tile_row(lane, h, w));
#pragma unroll
      for (int q = 0; q < 4; ++q) words[(h * kTiles + w) * 4 + q] = m[q];
    }
  }
  const float most = largest(words);
  float quadrants[kTiles][kTiles][2][4] = {};  // of tile (i, j): cosines, then sines of w
#pragma unroll
  for (int w = 0; w < kTiles; ++w) {
    Words4 width[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) width[j] = constants.width(j, w);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float rows[2][4] = {};  // rows of frequencies k, columns 16 w to 16 w + 15
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
        const Words4 rest = constants.rest(i, h);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint32_t* word = words + (h * kTiles + w) * 4 + 2 * n;
          const uint32_t b[2] = {word[0], word[1]};
          mma<Half::kBfloat16>(rows[n], rest.at, b);
          mma<Half::kBfloat16>(rows[n], constants.height.at[i][h].at, b);
        }
      }
      if (Guard::too_large(most, root)) {  // rare
        const float factor = power_of_two(Guard::plane(most, root));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int q = 0; q < 4; ++q) rows[n][q] *= factor;
        }
      }
      const uint32_t left[4] = {
          pack<Half::kFloat16>(rows[0][0], rows[0][1]),
          pack<Half::kFloat16>(rows[0][2], rows[0][3]),
          pack<Half::kFloat16>(rows[1][0], rows[1][1]),
          pack<Half::kFloat16>(rows[1][2], rows[1][3]),
      };
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const Words4& right = width[j];
        const uint32_t cosines[2] = {right.at[0], right.at[1]}, sines[2] = {right.at[2], right.at[3]};
        mma<Half::kFloat16>(quadrants[i][j][0], left, cosines);
        mma<Half::kFloat16>(quadrants[i][j][1], left, sines);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) store_frequencies<kTiles>(quadrants[i][j][0], quadrants[i][j][1], i, j, d);
  }
  return most;
}

// The constants of the inverse transform that a warp keeps; `width` takes back 2^taken_back.
template <int kTiles>
struct InverseConstants {
  DftTiles<kTiles> height, width;
  int taken_back = kInverseRightExponent;

  AFFNET_DEVICE explicit InverseConstants(const HalfArguments& a)
      : height(a.height_constants, DftSection::kInverseLeft, a.H),
        width(a.width_constants, DftSection::kInverseRight, a.W) {}

  AFFNET_DEVICE void take_back(int bits) {
    if (bits != taken_back) {  // rare: channels of about one size share a multiple of four
      width.scale(power_of_two(bits - taken_back));
      taken_back = bits;
    }
  }
};

// The combinations of a tile's frequencies that belong to the four quadrants, as right operands: pairs of rows k = 2 t,
// 2 t + 1 of column w = g.
struct Combinations {
  uint32_t cosines[2], sines[2];  // CC and SC, CS and SS
};

template <int kTiles>
AFFNET_DEVICE Combinations combine_frequencies(int i, int j, int d) {
  using Spectrum = HalfSpectrum<kTiles>;
  const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
  uint32_t m[4];
  load_matrices_transposed(m, Spectrum::matrix_row(d, lane, i, j));
  Combinations found = {{add_pairs(m[0], m[2]), subtract_pairs(m[3], m[1])},
                        {add_pairs(m[1], m[3]), subtract_pairs(m[0], m[2])}};
  if (i == 0) {  // k = 0: row 0 and row H / 2
    const bool first = t == 0;
    found.cosines[0] = with_low(found.cosines[0], m[0], first);
    found.cosines[1] = with_low(found.cosines[1], m[2], first);
    found.sines[0] = with_low(found.sines[0], m[1], first);
    found.sines[1] = with_low(found.sines[1], m[3], first);
  }
  if (j == 0 && g == 0) {  // w = 0: the imaginary part of the inverse along H is ignored; these columns count once
    const int k = 8 * i + 2 * t;
    const uint32_t mirrored_re = shared_load<uint32_t>(Spectrum::mirrored(d, 0, 0, k));
    const uint32_t mirrored_im = shared_load<uint32_t>(Spectrum::mirrored(d, 1, 0, k));
    const uint32_t nyquist_re = shared_load<uint32_t>(Spectrum::mirrored(d, 0, 1, k));
    const uint32_t nyquist_im = shared_load<uint32_t>(Spectrum::mirrored(d, 1, 1, k));
    const bool first = i == 0 && t == 0;  // each of the four at the corners is its own mirror image
    constexpr uint32_t kHalf = 0x38003800;
    found.cosines[0] = multiply_pairs(with_low(add_pairs(m[0], mirrored_re), m[0], first), kHalf);
    found.cosines[1] = multiply_pairs(with_low(subtract_pairs(mirrored_im, m[1]), mirrored_re, first), kHalf);
    found.sines[0] = multiply_pairs(with_low(add_pairs(m[2], nyquist_re), m[2], first), kHalf);
    found.sines[1] = multiply_pairs(with_low(subtract_pairs(nyquist_im, m[3]), nyquist_re, first), kHalf);
  }
  return found;
}

// From the masked spectrum of plane d, times 2^-taken_back, to y = its inverse + x, in 16-bit numbers at `y` in shared
// memory, which may be where x is.
template <int kTiles>
AFFNET_DEVICE void inverse_plane(InverseConstants<kTiles>& constants, uint32_t x, uint32_t y, int d, int taken_back) {
  const int lane = thread_index() % 32;
  const int by_constants = taken_back < kHalfTakenBack ? taken_back : kHalfTakenBack;
  constants.take_back(by_constants);
  float sums[kTiles][2 * kTiles][4] = {};  // rows 16 h, columns 8 n
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    float rows[kTiles][2][4] = {};  // rows 16 h, the cosines and then the sines of w = 8 j to 8 j + 7
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const Combinations right = combine_frequencies<kTiles>(i, j, d);
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
        mma<Half::kFloat16>(rows[h][0], constants.height.at[h][i].at, right.cosines);
        mma<Half::kFloat16>(rows[h][1], constants.height.at[h][i].at, right.sines);
      }
    }
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      const uint32_t left[4] = {
          pack<Half::kFloat16>(rows[h][0][0], rows[h][0][1]),
          pack<Half::kFloat16>(rows[h][0][2], rows[h][0][3]),
          pack<Half::kFloat16>(rows[h][1][0], rows[h][1][1]),
          pack<Half::kFloat16>(rows[h][1][2], rows[h][1][3]),
      };
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n) {
        const Words4& constant = constants.width.at[j][n / 2];
        const uint32_t b[2] = {constant.at[n % 2 * 2], constant.at[n % 2 * 2 + 1]};
        mma<Half::kFloat16>(sums[h][n], left, b);
      }
    }
  }
#pragma unroll 1
  for (int rest = taken_back - by_constants; rest > 0; rest -= 100) {  // rare; trips: hundreds
    const float factor = power_of_two(rest < 100 ? rest : 100);
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n) {
#pragma unroll
        for (int q = 0; q < 4; ++q) sums[h][n][q] *= factor;
      }
    }
  }
  // x itself by a product with the identity, whose upper and lower half these are.
  const int g = lane / 4, t = lane % 4;
  constexpr uint32_t kOne = 0x3f80;
  const uint32_t one = g / 2 == t ? kOne << 16 * (g % 2) : 0;
  const uint32_t identity[2][2] = {{one, 0}, {0, one}};
#pragma unroll
  for (int h = 0; h < kTiles; ++h) {
#pragma unroll
    for (int w = 0; w < kTiles; ++w) {
      const uint32_t place = HalfPlanes<kTiles>::tile_row(lane, h, w);
      uint32_t m[4];
      load_matrices(m, x + place);
#pragma unroll
      for (int n = 0; n < 2; ++n) mma<Half::kBfloat16>(sums[h][2 * w + n], m, identity[n]);
      const uint32_t result[4] = {
          pack<Half::kBfloat16>(sums[h][2 * w][0], sums[h][2 * w][1]),
          pack<Half::kBfloat16>(sums[h][2 * w][2], sums[h][2 * w][3]),
          pack<Half::kBfloat16>(sums[h][2 * w + 1][0], sums[h][2 * w + 1][1]),
          pack<Half::kBfloat16>(sums[h][2 * w + 1][2], sums[h][2 * w + 1][3]),
      };
      store_matrices(y + place, result);
    }
  }
}

}  // namespace affnet
