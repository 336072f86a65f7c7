// Transforms of a vector of columns or rows, each in a lane, and the transposes that bring rows into lanes and back.
#pragma once

#include "fft/stockham.h"
#include "simd/shuffle.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
struct TransformScratch {
  T* staging;       // [height, staging_stride]
  T* rows;          // [(height + 1) / 2, 2, row_stride]
  T* long_signals;  // [3, 2, long_buffer]
  T* energy;        // [vectors of pairs of columns, 2, kLanes], see energy.h
  Vec<T>* fft[4];   // real and imaginary parts of the two buffers of a transform
};

// Calls f(0) ... f(count - 1); unrolled if N > 0, which is then the count.
template <int N, typename F>
AFFNET_INLINE void loop(int count, F&& f) {
  if constexpr (N > 0) {
    unroll<N>(f);
  } else {
    for (int i = 0; i < count; ++i) f(i);
  }
}

// Transforms N vectors in registers, or for N = 0 as many as the plan says in scratch memory. The frequencies k and N -
// k of a packed pair of real signals belong together, so the spectrum is passed in such pairs: pair(k, ...) is called
// for 0 <= k <= N / 2 with references to both, which are the same element for k = 0 and k = N / 2.
template <int N, typename T>
struct Workspace {
  using V = Vec<T>;
  const V one = pinned(V(T(1)));
  AFFNET_INLINE explicit Workspace(const TransformScratch<T>&) {}

  // in(n, re, im) sets input n.
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

  // out(k, re, im) receives output k.
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

// N complex vectors; for N = 0, those of the workspace.
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

// Where vector i starts when `count` elements are processed `lanes` at a time. The last vector is moved back to end
// with the last element, and so repeats some of the vector before it; fewer elements than lanes start at 0.
AFFNET_INLINE constexpr int vector_start(int i, int count, int lanes) {
  const int start = i * lanes;
  return start + lanes <= count || count <= lanes ? start : count - lanes;
}
AFFNET_INLINE constexpr int vectors_of(int count, int lanes) { return (count + lanes - 1) / lanes; }

// Whether rows are so short that one vector holds two of them in a transpose.
template <typename T>
constexpr bool is_narrow(int width) {
  return kHasHalves && Vec<T>::kLanes == 16 && width > 4 && width <= 8;
}

// Transposes kLanes rows into vectors: lane l of z[w] becomes element w of the row at offsets[l].
template <int N, typename T>
AFFNET_INLINE void gather_rows(Vec<T>* z, const T* rows, const int* offsets, int width) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  if constexpr (is_narrow<T>(N)) {
    V pairs[8];
    unroll<8>([&](auto l) AFFNET_LAMBDA { pairs[l] = load_halves(rows + offsets[l], rows + offsets[l + 8]); });
    transpose_halves(pairs);
    unroll<N>([&](auto w) AFFNET_LAMBDA { z[w] = pairs[w]; });
    return;
  }
  loop<N ? vectors_of(N, L) : 0>(vectors_of(width, L), [&](auto i) AFFNET_LAMBDA {
    const int w = vector_start(i, width, L);
    V square[L];
    unroll<L>([&](auto l) AFFNET_LAMBDA { square[l] = V::load(rows + offsets[l] + w); });
    transpose(square);
    unroll<L>([&](auto l) AFFNET_LAMBDA {
      if (w + l < width) z[w + l] = square[l];
    });
  });
}

// The inverse of gather_rows, for the first `count` rows.
template <int N, typename T>
AFFNET_INLINE void scatter_rows(const Vec<T>* z, T* rows, const int* offsets, int count, int width) {
  using V = Vec<T>;
  constexpr int L = V::kLanes;
  if constexpr (is_narrow<T>(N)) {
    V pairs[8];
    unroll<8>([&](auto w) AFFNET_LAMBDA { pairs[w] = z[w < N ? w : N - 1]; });
    transpose_halves(pairs);
    unroll<8>([&](auto l) AFFNET_LAMBDA {  // elements beyond the width fall beyond the last column or into the pitch
      if (l < count) store_low_half(pairs[l], rows + offsets[l]);
      if (l + 8 < count) store_high_half(pairs[l], rows + offsets[l + 8]);
    });
    return;
  }
  loop<N ? vectors_of(N, L) : 0>(vectors_of(width, L), [&](auto i) AFFNET_LAMBDA {
    const int w = vector_start(i, width, L);
    V square[L];
    unroll<L>([&](auto l) AFFNET_LAMBDA { square[l] = w + l < width ? z[w + l] : V(T(0)); });
    transpose(square);
    const auto store = [&](auto l)
                           AFFNET_LAMBDA { store_first(square[l], rows + offsets[l] + w, width < L ? width : L); };
    if (count == L) {
      unroll<L>(store);
    } else {
      for (int l = 0; l < count; ++l) store(l);
    }
  });
}

}  // namespace affnet::AFFNET_CAPABILITY
