// Operations across lanes: transposes of vectors, and sums over the lanes of several vectors.
#pragma once

#include "simd/vec.h"

namespace affnet::AFFNET_CAPABILITY {

// One round of a transpose: exchanges the lanes of a in which bit S of the lane number is set with the lanes of b in
// which it is clear.
template <int S, typename T>
AFFNET_INLINE void interleave(Vec<T>& a, Vec<T>& b) {
  using V = Vec<T>;
  [&]<int... L>(std::integer_sequence<int, L...>) AFFNET_LAMBDA {
    const auto low = __builtin_shufflevector(a.raw, b.raw, ((L & S) ? V::kLanes + L - S : L)...);
    const auto high = __builtin_shufflevector(a.raw, b.raw, ((L & S) ? V::kLanes + L : L + S)...);
    a.raw = low;
    b.raw = high;
  }(std::make_integer_sequence<int, V::kLanes>{});
}

// The next two shuffles of 16 lanes are single instructions that need no table of indices. A quarter is four lanes.
//
// In each quarter, groups of S lanes alternately from a and b, taken from the lower (kHigh = 0) or upper half of their
// quarter.
template <int S, int kHigh, typename T>
AFFNET_INLINE Vec<T> zip_quarters(Vec<T> a, Vec<T> b) {
  return [&]<int... L>(std::integer_sequence<int, L...>) AFFNET_LAMBDA {
    return Vec<T>(__builtin_shufflevector(a.raw, b.raw,
                                          (L % 4 / S % 2 * 16 + L / 4 * 4 + L % 4 / S / 2 * S + L % S + 2 * kHigh)...));
  }(std::make_integer_sequence<int, 16>{});
}
// The even (kOdd = 0) or odd quarters of a, followed by those of b.
template <int kOdd, typename T>
AFFNET_INLINE Vec<T> alternate_quarters(Vec<T> a, Vec<T> b) {
  return [&]<int... L>(std::integer_sequence<int, L...>) AFFNET_LAMBDA {
    return Vec<T>(__builtin_shufflevector(a.raw, b.raw, (L / 8 * 16 + L / 4 % 2 * 8 + L % 4 + 4 * kOdd)...));
  }(std::make_integer_sequence<int, 16>{});
}

// Transposes each quarter of four vectors, as a 4 x 4 matrix.
template <typename T>
AFFNET_INLINE void transpose_quads(Vec<T>* r) {
  const Vec<T> a = zip_quarters<1, 0>(r[0], r[1]), b = zip_quarters<1, 1>(r[0], r[1]);
  const Vec<T> c = zip_quarters<1, 0>(r[2], r[3]), d = zip_quarters<1, 1>(r[2], r[3]);
  r[0] = zip_quarters<2, 0>(a, c), r[1] = zip_quarters<2, 1>(a, c);
  r[2] = zip_quarters<2, 0>(b, d), r[3] = zip_quarters<2, 1>(b, d);
}
template <typename T>
AFFNET_INLINE void transpose_16(Vec<T>* rows) {
  using V = Vec<T>;
  unroll<4>([&](auto i) AFFNET_LAMBDA { transpose_quads(rows + 4 * i); });
  unroll<4>([&](auto j) AFFNET_LAMBDA {  // now the 4 x 4 matrix of quarters
    V* const r = rows + j;
    const V a = alternate_quarters<0>(r[0], r[4]), b = alternate_quarters<1>(r[0], r[4]);
    const V c = alternate_quarters<0>(r[8], r[12]), d = alternate_quarters<1>(r[8], r[12]);
    r[0] = alternate_quarters<0>(a, c), r[8] = alternate_quarters<1>(a, c);
    r[4] = alternate_quarters<0>(b, d), r[12] = alternate_quarters<1>(b, d);
  });
}
// Lane j of rows[i] becomes lane i of rows[j].
template <typename T, int S = Vec<T>::kLanes / 2>
AFFNET_INLINE void transpose(Vec<T>* rows) {
  if constexpr (Vec<T>::kLanes == 16) return transpose_16(rows);
  unroll<Vec<T>::kLanes>([&](auto i) AFFNET_LAMBDA {
    if constexpr (!(i & S)) interleave<S>(rows[i], rows[i + S]);
  });
  if constexpr (S > 1) transpose<T, S / 2>(rows);
}

// Transposes 16 rows of 8 elements: vectors[i] holds rows i and i + 8 in its halves before, column i after. Applied a
// second time it restores the rows.
template <typename T>
AFFNET_INLINE void transpose_halves(Vec<T>* vectors) {
  transpose_quads(vectors), transpose_quads(vectors + 4);
  unroll<4>([&](auto j) AFFNET_LAMBDA { interleave<4>(vectors[j], vectors[j + 4]); });
}

template <typename T>
AFFNET_INLINE Vec<T> sum_lanes_16(Vec<T>* rows) {
  const auto halve = [&](auto count, auto low, auto high) AFFNET_LAMBDA {
    unroll<count>([&](auto i) AFFNET_LAMBDA {
      rows[i] = low(rows[2 * i], rows[2 * i + 1]) + high(rows[2 * i], rows[2 * i + 1]);
    });
  };
  halve(std::integral_constant<int, 8>{}, zip_quarters<1, 0, T>, zip_quarters<1, 1, T>);
  halve(std::integral_constant<int, 4>{}, zip_quarters<2, 0, T>, zip_quarters<2, 1, T>);
  halve(std::integral_constant<int, 2>{}, alternate_quarters<0, T>, alternate_quarters<1, T>);
  halve(std::integral_constant<int, 1>{}, alternate_quarters<0, T>, alternate_quarters<1, T>);
  return rows[0];
}
// Lane i of the result is the sum over the lanes of rows[i]. Overwrites `rows`.
template <typename T, int S = Vec<T>::kLanes / 2>
AFFNET_INLINE Vec<T> sum_lanes(Vec<T>* rows) {
  if constexpr (Vec<T>::kLanes == 16) return sum_lanes_16(rows);
  unroll<S>([&](auto i) AFFNET_LAMBDA {
    interleave<S>(rows[i], rows[i + S]);
    rows[i] += rows[i + S];
  });
  if constexpr (S > 1) return sum_lanes<T, S / 2>(rows);
  return rows[0];
}

}  // namespace affnet::AFFNET_CAPABILITY
