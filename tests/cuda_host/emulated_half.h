// The host's versions of csrc/cuda/device_half.h, checked as emulator.h says.
#pragma once

#include "emulator.h"

namespace affnet {

namespace emulator {

// float16 of a number rounded to nearest, ties to even.
inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above
  if (magnitude < 0x38800000) {                                              // subnormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(float_of(magnitude), 24))));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

inline float from_float16(uint32_t half) {
  const uint32_t sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float value =
      magnitude < 0x400 ? std::ldexp(static_cast<float>(magnitude), -24) : float_of((magnitude << 13) + 0x38000000);
  return sign != 0 ? -value : value;
}

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <Half kFormat>
float number(uint32_t pair, int which) {
  const uint32_t bits = pair >> 16 * which & 0xffff;
  return kFormat == Half::kFloat16 ? from_float16(bits) : float_of(bits << 16);
}

template <typename F>
uint32_t each_float16(F&& f) {
  return to_float16(static_cast<float>(f(0))) | uint32_t{to_float16(static_cast<float>(f(1)))} << 16;
}

inline int lane() { return Cta::current()->thread() % kWarp; }

}  // namespace emulator

template <Half kFormat>
uint32_t pack(float first, float second) {
  if constexpr (kFormat == Half::kFloat16) {
    return emulator::to_float16(first) | uint32_t{emulator::to_float16(second)} << 16;
  }
  return emulator::to_bfloat16(first) | uint32_t{emulator::to_bfloat16(second)} << 16;
}

inline uint32_t pack_relu(float first, float second) {
  return pack<Half::kFloat16>(first < 0 ? 0.f : first, second < 0 ? 0.f : second);
}

template <Half kFormat>
float first_of(uint32_t pair) {
  return emulator::number<kFormat>(pair, 0);
}

template <Half kFormat>
float second_of(uint32_t pair) {
  return emulator::number<kFormat>(pair, 1);
}

inline uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c) {
  const auto of = emulator::number<Half::kFloat16>;
  return emulator::each_float16([&](int i) { return double{of(a, i)} * of(b, i) + of(c, i); });
}
inline uint32_t add_pairs(uint32_t a, uint32_t b) {
  const auto of = emulator::number<Half::kFloat16>;
  return emulator::each_float16([&](int i) { return of(a, i) + of(b, i); });
}
inline uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  const auto of = emulator::number<Half::kFloat16>;
  return emulator::each_float16([&](int i) { return of(a, i) - of(b, i); });
}
inline uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  const auto of = emulator::number<Half::kFloat16>;
  return emulator::each_float16([&](int i) { return of(a, i) * of(b, i); });
}

inline uint32_t min_pairs(uint32_t a, uint32_t b) {
  const auto of = emulator::number<Half::kFloat16>;
  return emulator::each_float16([&](int i) { return std::fmin(of(a, i), of(b, i)); });
}
inline uint32_t max_pairs(uint32_t a, uint32_t b) {
  const auto of = emulator::number<Half::kFloat16>;
  return emulator::each_float16([&](int i) { return std::fmax(of(a, i), of(b, i)); });
}
inline uint32_t multiply_complex(uint32_t a, uint32_t b) {
  const uint32_t rotated = (b >> 16 | b << 16) ^ 0x8000, re = (a & 0xffff) * 0x10001, im = (a >> 16) * 0x10001;
  return fma_pairs(im, rotated, multiply_pairs(re, b));
}

inline uint32_t larger_magnitudes(uint32_t a, uint32_t b) {
  const uint32_t low = std::max(a & 0x7fff, b & 0x7fff), high = std::max(a & 0x7fff0000, b & 0x7fff0000);
  return low | high | ((a ^ b) & 0x80008000);
}

inline float exp2_approximate(float v) { return std::exp2(v); }
inline float reciprocal_approximate(float v) { return 1 / v; }

// As wrong as it may be: by half of its error bound, up or down.
inline float tanh_approximate(float v) {
  const float sign = bits_of(v) >> 3 & 1 ? 1.f : -1.f;
  return std::tanh(v) * (1 + sign * 0x1p-11f);
}

template <typename V>
V shuffle(V value, int lane) {
  emulator::Cta& cta = *emulator::Cta::current();
  cta.deposit(value);
  return cta.deposit_of<V>(lane);
}

template <typename V>
V warp_max(V value) {
  emulator::Cta& cta = *emulator::Cta::current();
  cta.deposit(value);
  for (int lane = 0; lane < emulator::kWarp; ++lane) value = std::max(value, cta.deposit_of<V>(lane));
  return value;
}

namespace emulator {

struct Row {
  uint16_t at[8];
};

// Register of matrix q, of which lane 8 q + r has deposited row r.
inline uint32_t matrix_register(int q, bool transposed) {
  const Cta& cta = *Cta::current();
  const int g = lane() / 4, t = lane() % 4;
  const auto element = [&](int row, int column) -> uint32_t { return cta.deposit_of<Row>(8 * q + row).at[column]; };
  return transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
}

template <int kCount>
void load_matrices(uint32_t (&m)[kCount], uint32_t offset, bool transposed, int line) {
  Cta& cta = *Cta::current();
  Row row{};
  if (lane() < 8 * kCount) cta.load(offset, &row, sizeof(row), line);
  cta.deposit(row);
  for (int q = 0; q < kCount; ++q) m[q] = matrix_register(q, transposed);
}

template <int kCount>
void store_matrices(uint32_t offset, const uint32_t (&m)[kCount], bool transposed, int line) {
  struct Registers {
    uint32_t at[kCount];
  };
  Cta& cta = *Cta::current();
  Registers mine;
  std::copy(m, m + kCount, mine.at);
  cta.deposit(mine);
  if (lane() >= 8 * kCount) return;
  const int q = lane() / 8, row = lane() % 8;
  Row stored;
  for (int column = 0; column < 8; ++column) {
    const int r = transposed ? column : row, c = transposed ? row : column;
    stored.at[column] = static_cast<uint16_t>(cta.deposit_of<Registers>(4 * r + c / 2).at[q] >> 16 * (c % 2));
  }
  cta.store(offset, &stored, sizeof(stored), line);
}

// c += a b with k8 steps of eight in the contraction.
template <Half kFormat, int kSteps>
void mma(float (&c)[4], const uint32_t (&a)[2 * kSteps], const uint32_t (&b)[kSteps]) {
  struct Operands {
    uint32_t a[2 * kSteps], b[kSteps];
  };
  Cta& cta = *Cta::current();
  Operands mine;
  std::copy(a, a + 2 * kSteps, mine.a);
  std::copy(b, b + kSteps, mine.b);
  cta.deposit(mine);
  const int g = lane() / 4, t = lane() % 4;
  double sum[4] = {c[0], c[1], c[2], c[3]};
  for (int step = 0; step < kSteps; ++step) {
    for (int pair = 0; pair < 4; ++pair) {
      const Operands& left = cta.deposit_of<Operands>(4 * g + pair);
      for (int column = 0; column < 2; ++column) {
        const uint32_t right = cta.deposit_of<Operands>(4 * (2 * t + column) + pair).b[step];
        for (int which = 0; which < 2; ++which) {
          const double factor = number<kFormat>(right, which);
          sum[column] += number<kFormat>(left.a[2 * step], which) * factor;
          sum[2 + column] += number<kFormat>(left.a[2 * step + 1], which) * factor;
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) c[i] = towards_zero(sum[i]);
}

}  // namespace emulator

inline void load_matrices(uint32_t (&m)[4], uint32_t offset, int line = __builtin_LINE()) {
  emulator::load_matrices(m, offset, false, line);
}
template <int kCount>
void load_matrices_transposed(uint32_t (&m)[kCount], uint32_t offset, int line = __builtin_LINE()) {
  emulator::load_matrices(m, offset, true, line);
}
inline void store_matrices(uint32_t offset, const uint32_t (&m)[4], int line = __builtin_LINE()) {
  emulator::store_matrices(offset, m, false, line);
}
template <int kCount>
void store_matrices_transposed(uint32_t offset, const uint32_t (&m)[kCount], int line = __builtin_LINE()) {
  emulator::store_matrices(offset, m, true, line);
}

inline uint32_t transpose_matrix(uint32_t m) {
  emulator::Cta& cta = *emulator::Cta::current();
  cta.deposit(m);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  const auto element = [&](int row) { return cta.deposit_of<uint32_t>(4 * row + g / 2) >> 16 * (g % 2) & 0xffff; };
  return element(2 * t) | element(2 * t + 1) << 16;
}

template <Half kFormat>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma<kFormat, 2>(c, a, b);
}
template <Half kFormat>
void mma(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  emulator::mma<kFormat, 1>(c, a, b);
}

template <int kBytes>
void copy_async(uint32_t offset, const void* from, int line = __builtin_LINE()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::Cta::current()->copy_async(offset, from, kBytes, line);
}
inline void copy_async_commit() { emulator::Cta::current()->copy_async_commit(); }
template <int kPending>
void copy_async_wait(int line = __builtin_LINE()) {
  emulator::Cta::current()->copy_async_wait(kPending, line);
}

}  // namespace affnet
