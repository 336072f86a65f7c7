// The constants of the discrete Fourier transforms by matrix products, packed as the tensor cores' operands, for the
// lengths that the one-launch kernels take. All of it is computed by the compiler.
//
// A transform of length N is a real matrix M of two kinds of rows, orthonormal but for the weights of the half
// spectrum: row (cos, k) is cos(2 pi k h / N) / sqrt(N), row (sin, k) is sin(2 pi k h / N) / sqrt(N), for 0 <= k <
// ceil(N / 2). The row (sin, 0), which would be zero, is (-1)^h / sqrt(N), the Nyquist frequency, if N is even. Rows
// and columns beyond are zero.
//
// A row tile of 16 is the cosines of eight k and then the sines of the same, a column tile is 16 values of h.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

namespace affnet {

using DftLengths = std::integer_sequence<int, 7, 8, 10, 14, 16, 20, 28, 32, 40>;

constexpr int dft_tiles(int length) { return (length + 15) / 16; }

// Which operand a section of the table is. `kLeft` has the order of registers of a left operand, in bfloat16 as it
// meets x, and `kLeftRest` is what bfloat16 leaves of it; the others are float16. `kRight` has the order of two right
// operands. As right operands the sines (not the Nyquist row) have the other sign, which saves that of the complex
// exponential. The inverse is the transpose of M, times sqrt(2) because an interior frequency stands for two; its right
// operand also times 2^8, in the middle of the powers of two that float16 numbers can take.
enum class DftSection { kLeft, kLeftRest, kRight, kInverseLeft, kInverseRight };

constexpr int kInverseRightExponent = 8;
constexpr int kDftSections = 5, kDftTileWords = 128;  // a tile: four registers of 32 lanes, lane by lane

constexpr int dft_words(int length) { return kDftSections * dft_tiles(length) * dft_tiles(length) * kDftTileWords; }

// Where the table of a length begins, in words; -1 if there is none.
constexpr int dft_offset(int length) {
  int offset = 0, found = -1;
  [&]<int... kLengths>(std::integer_sequence<int, kLengths...>) {
    ((found = kLengths == length ? offset : found, offset += dft_words(kLengths)), ...);
  }(DftLengths{});
  return found;
}

constexpr int dft_table_words() {
  return []<int... kLengths>(std::integer_sequence<int, kLengths...>) {
    return (dft_words(kLengths) + ...);
  }(DftLengths{});
}

namespace dft {

// cos and sin of 2 pi j / N, by their series within an eighth of a turn.
constexpr double series(double angle, bool sine) {
  double term = sine ? angle : 1, sum = term;
  for (int n = sine ? 2 : 1; n < 20; n += 2) {
    term *= -angle * angle / (n * (n + 1));
    sum += term;
  }
  return sum;
}

constexpr double cosine(int j, int N) {
  j = (j % N + N) % N;
  if (2 * j > N) j = N - j;
  if (4 * j > N) return -cosine(N - 2 * j, 2 * N);  // cos(pi - a)
  constexpr double kTurn = 6.283185307179586476925;
  return 8 * j > N ? series(kTurn * (N - 4 * j) / (4 * N), true) : series(kTurn * j / N, false);
}

constexpr double root(double v) {
  double r = v;
  for (int i = 0; i < 40; ++i) r = (r + v / r) / 2;
  return r;
}

// A number with `bits` bits of mantissa after the first, nearest to v, ties to even; v is 0 or in the normal range.
struct Rounded {
  int exponent = 0, mantissa = 0;
  double value = 0;
};

constexpr Rounded round_to(double v, int bits) {
  Rounded r;
  double magnitude = v < 0 ? -v : v;
  if (magnitude < 1e-12) return r;
  while (magnitude < 1) magnitude *= 2, --r.exponent;
  while (magnitude >= 2) magnitude /= 2, ++r.exponent;
  const double scaled = magnitude * (1 << bits);
  r.mantissa = static_cast<int>(scaled);
  const double rest = scaled - r.mantissa;
  if (rest > 0.5 || (rest == 0.5 && r.mantissa % 2 == 1)) ++r.mantissa;
  if (r.mantissa == 2 << bits) r.mantissa = 1 << bits, ++r.exponent;
  double unit = v < 0 ? -1 : 1;
  for (int i = r.exponent; i < 0; ++i) unit /= 2;
  for (int i = 0; i < r.exponent; ++i) unit *= 2;
  r.value = unit * r.mantissa / (1 << bits);
  return r;
}

constexpr uint16_t bits_of(double v, int mantissa_bits, int bias) {
  const Rounded r = round_to(v, mantissa_bits);
  if (r.mantissa == 0) return 0;
  const int magnitude = ((r.exponent + bias) << mantissa_bits) + r.mantissa - (1 << mantissa_bits);
  return static_cast<uint16_t>(magnitude | (v < 0 ? 0x8000 : 0));
}

constexpr uint16_t float16_bits(double v) { return bits_of(v, 10, 15); }
constexpr uint16_t bfloat16_bits(double v) { return bits_of(v, 7, 127); }
constexpr double bfloat16_rest(double v) { return v - round_to(v, 7).value; }

// One matrix M, element by element.
template <int kLength>
struct Matrix {
  static constexpr int kHalf = (kLength + 1) / 2;
  double circle[kLength] = {}, scale = 1 / root(kLength);

  constexpr Matrix() {
    for (int j = 0; j < kLength; ++j) circle[j] = cosine(j, kLength);
  }

  // Row r of row tile i, column h.
  constexpr double at(int i, int r, int h) const {
    const int k = 8 * i + r % 8;
    if (k >= kHalf || h >= kLength) return 0;
    if (r < 8) return scale * circle[k * h % kLength];
    if (k == 0) return kLength % 2 == 0 ? scale * (h % 2 == 0 ? 1 : -1) : 0;
    // sin a = cos(a - a quarter): with a length that is no multiple of four, by twice or four times the length
    return scale * cosine(4 * (k * h % kLength) - kLength, 4 * kLength);
  }
};

// The four registers of a lane of one operand: element (row, column) of both numbers of each.
template <int kLength>
constexpr void fill(std::array<uint32_t, dft_words(kLength)>& words) {
  constexpr int kTiles = dft_tiles(kLength), kSection = kTiles * kTiles * kDftTileWords;
  const Matrix<kLength> M;
  const double inverse_scale = root(2);
  for (int i = 0; i < kTiles; ++i) {
    for (int c = 0; c < kTiles; ++c) {
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int q = 0; q < 4; ++q) {
          uint32_t left[2] = {}, right = 0, inverse_left = 0, inverse_right = 0;
          for (int e = 0; e < 2; ++e) {
            // Forward: rows are frequencies. Registers 1 and 3 of a left operand are its lower eight rows.
            const double a = M.at(i, g + 8 * (q % 2), 16 * c + 2 * t + 8 * (q / 2) + e);
            const double b = M.at(i, g + 8 * (q / 2), 16 * c + 2 * t + 8 * (q % 2) + e);
            left[0] |= uint32_t{bfloat16_bits(a)} << 16 * e;
            left[1] |= uint32_t{bfloat16_bits(bfloat16_rest(a))} << 16 * e;
            const bool negative = q / 2 == 1 && 8 * i + g > 0;
            right |= uint32_t{float16_bits(negative ? -b : b)} << 16 * e;
            // Inverse: tile (i, c) is the transpose of M's tile (c, i); rows are positions.
            const double ia = inverse_scale * M.at(c, 2 * t + 8 * (q / 2) + e, 16 * i + g + 8 * (q % 2));
            const double ib = inverse_scale * M.at(i, 2 * t + 8 * (q % 2) + e, 16 * c + g + 8 * (q / 2));
            inverse_left |= uint32_t{float16_bits(ia)} << 16 * e;
            const bool inverse_negative = q % 2 == 1 && 8 * i + 2 * t + e > 0;
            const double scaled = ib * (1 << kInverseRightExponent);
            inverse_right |= uint32_t{float16_bits(inverse_negative ? -scaled : scaled)} << 16 * e;
          }
          const int at = (i * kTiles + c) * kDftTileWords + 4 * lane + q;
          words[at] = left[0], words[kSection + at] = left[1], words[2 * kSection + at] = right;
          words[3 * kSection + at] = inverse_left, words[4 * kSection + at] = inverse_right;
        }
      }
    }
  }
}

template <int kLength>
constexpr void append(std::array<uint32_t, dft_table_words()>& table) {
  std::array<uint32_t, dft_words(kLength)> words{};
  fill<kLength>(words);
  const int offset = dft_offset(kLength);
  for (int i = 0; i < dft_words(kLength); ++i) table[offset + i] = words[i];
}

}  // namespace dft

constexpr std::array<uint32_t, dft_table_words()> make_dft_table() {
  std::array<uint32_t, dft_table_words()> table{};
  [&]<int... kLengths>(std::integer_sequence<int, kLengths...>) { (dft::append<kLengths>(table), ...); }(DftLengths{});
  return table;
}

}  // namespace affnet
