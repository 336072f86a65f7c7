// Where a vector of columns or rows is transformed, and how rows get there and back.
#pragma once

#include "fft/stockham.h"
#include "simd/shuffle.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
struct TransformScratch {
  T* staging;  // [height, staging_stride]
  T* rows;     // [(height + 1) / 2, 2, row_stride]
  Vec<T>* fft[4];
};

// f(0) .. f(count - 1), unrolled where the count N is known at compile time (N > 0).
template <int N, typename F>
AFFNET_INLINE void loop(int count, F&& f) {
  if constexpr (N > 0) {
    unroll<N>(f);
  } else {
    for (int i = 0; i < count; ++i) f(i);
  }
}

// Transforms of N vectors; N = 0: of any length, in scratch memory. Where both sides are spectra of real signals their
// frequencies k and N - k are dealt with together: pair(k, ...) is called for 0 <= k <= N / 2, with references to both,
// which are the same for k = 0 and k = N / 2.
template <int N, typename T>
struct Workspace {
  using V = Vec<T>;
  const V one = pinned(V(T(1)));
  AFFNET_INLINE explicit Workspace(const TransformScratch<T>&) {}

  // in(n, re, im) sets an input.
  template <typename In, typename Pair>
  AFFNET_INLINE void transform(const FftPlan<T>&, In&& in, Pair&& pair) {
    constexpr Order<N> order;
    V all_re[N], all_im[N];
    dft<N>(one, in, [&](auto k, V re, V im) AFFNET_LAMBDA {
      all_re[k] = re, all_im[k] = im;
      constexpr int mirror = (N - k) % N, low = k < mirror ? k : mirror, high = k < mirror ? mirror : k;
      if constexpr (order.rank[mirror] <= order.rank[k]) {
        pair(std::integral_constant<int, low>{}, all_re[low], all_im[low], all_re[high], all_im[high]);
      }
    });
  }

  // out(k, re, im) takes an output.
  template <typename Pair, typename Out>
  AFFNET_INLINE void inverse(const FftPlan<T>&, Pair&& pair, Out&& out) {
    dft<N>(
        one,
        [&](auto n, V& im, V& re) AFFNET_LAMBDA {
          constexpr int low = 2 * n <= N ? n : N - n;
          V other_re, other_im;
          if constexpr (low == n) {
            pair(std::integral_constant<int, low>{}, re, im, other_re, other_im);
          } else {
            pair(std::integral_constant<int, low>{}, other_re, other_im, re, im);
          }
        },
        [&](auto k, V im, V re) AFFNET_LAMBDA { out(k, re, im); });
  }
};

template <typename T>
struct Workspace<0, T> {
  using V = Vec<T>;
  Signal<T> data, work;
  explicit Workspace(const TransformScratch<T>& scratch)
      : data{scratch.fft[0], scratch.fft[1]}, work{scratch.fft[2], scratch.fft[3]} {}

  template <typename In, typename Pair>
  void transform(const FftPlan<T>& plan, In&& in, Pair&& pair) {
    for (int n = 0; n < plan.length; ++n) in(n, data.re[n], data.im[n]);
    each_pair(plan.length, fft(plan, data, work), pair);
  }

  template <typename Pair, typename Out>
  void inverse(const FftPlan<T>& plan, Pair&& pair, Out&& out) {
    each_pair(plan.length, data, pair);
    const Signal<T> z = fft(plan, {data.im, data.re}, work);
    for (int k = 0; k < plan.length; ++k) out(k, z.im[k], z.re[k]);
  }

  template <typename Pair>
  static AFFNET_INLINE void each_pair(int length, Signal<T> z, Pair&& pair) {
    for (int k = 0; 2 * k <= length; ++k) {
      const int mirror = k == 0 ? 0 : length - k;
      pair(k, z.re[k], z.im[k], z.re[mirror], z.im[mirror]);
    }
  }
};

// N complex vectors; N = 0: the workspace's.
template <int N, typename T>
struct Buffer {
  Vec<T> re[N], im[N];
  AFFNET_INLINE explicit Buffer(const TransformScratch<T>&) {}
};
template <typename T>
struct Buffer<0, T> {
  Vec<T>*re, *im;
  explicit Buffer(const TransformScratch<T>& scratch) : re(scratch.fft[0]), im(scratch.fft[1]) {}
};

// Where block `i` of `lanes` starts among `count` lanes: the last block is moved back to end with them, and repeats
// some of the one before; fewer lanes than a block start at 0.
AFFNET_INLINE constexpr int block_start(int i, int count, int lanes) {
  const int start = i * lanes;
  return start + lanes <= count || count <= lanes ? start : count - lanes;
}
AFFNET_INLINE constexpr int blocks_of(int count, int lanes) { return (count + lanes - 1) / lanes; }

// Whether rows take so little of a vector that two are transposed as one.
template <typename T>
constexpr bool is_narrow(int width) {
  return kHasHalves && Vec<T>::kLanes == 16 && width > 4 && width <= 8;
}

// `lanes` rows from `row` on, transposed: z[w] gets element w of each.
template <int N, typename T>
AFFNET_INLINE void gather_rows(Vec<T>* z, const T* rows, const int* offsets, int width) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  if constexpr (is_narrow<T>(N)) {
    V block[8];
    unroll<8>([&](auto l) AFFNET_LAMBDA { block[l] = load_halves(rows + offsets[l], rows + offsets[l + 8]); });
    transpose_halves(block);
    unroll<N>([&](auto w) AFFNET_LAMBDA { z[w] = block[w]; });
    return;
  }
  loop<N ? blocks_of(N, L) : 0>(blocks_of(width, L), [&](auto b) AFFNET_LAMBDA {
    const int w = block_start(b, width, L);
    V block[L];
    unroll<L>([&](auto l) AFFNET_LAMBDA { block[l] = V::load(rows + offsets[l] + w); });
    transpose(block);
    unroll<L>([&](auto l) AFFNET_LAMBDA {
      if (w + l < width) z[w + l] = block[l];
    });
  });
}

template <int N, typename T>
AFFNET_INLINE void scatter_rows(const Vec<T>* z, T* rows, const int* offsets, int count, int width) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  if constexpr (is_narrow<T>(N)) {
    V block[8];
    unroll<8>([&](auto w) AFFNET_LAMBDA { block[w] = z[w < N ? w : N - 1]; });
    transpose_halves(block);
    unroll<8>([&](auto l) AFFNET_LAMBDA {  // what is beyond the width is beyond the last column or in the pitch
      if (l < count) store_low_half(block[l], rows + offsets[l]);
      if (l + 8 < count) store_high_half(block[l], rows + offsets[l + 8]);
    });
    return;
  }
  loop<N ? blocks_of(N, L) : 0>(blocks_of(width, L), [&](auto b) AFFNET_LAMBDA {
    const int w = block_start(b, width, L);
    V block[L];
    unroll<L>([&](auto l) AFFNET_LAMBDA { block[l] = w + l < width ? z[w + l] : V(T(0)); });
    transpose(block);
    const auto store = [&](auto l)
                           AFFNET_LAMBDA { store_first(block[l], rows + offsets[l] + w, width < L ? width : L); };
    if (count == L) {
      unroll<L>(store);
    } else {
      for (int l = 0; l < count; ++l) store(l);
    }
  });
}

}  // namespace affnet::AFFNET_CAPABILITY
