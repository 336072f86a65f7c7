// The spectral map by plain FMA, in place between two cuFFT transforms. It serves float64 and the sizes for which there
// is no tensor-core kernel (mma_quads in launch_plan.h, which also defines the words used here).
//
// A CTA loads all channels of one block at a tile of frequencies into shared memory and keeps them there through both
// layers; a thread computes `kThreadOutputs` channels at two frequencies. Channels are not padded in global memory.
//
// The masked spectrum Y is not Hermitian in the special columns w = 0 and w = W/2, because the mask treats real and
// imaginary parts separately. The definition (a complex inverse along H, then a complex-to-real one along W, which
// ignores the imaginary part of those columns) keeps their Hermitian part, whereas a 2-D complex-to-real plan may read
// only half of them and assume the rest. So the kernels store the Hermitian part itself, and every such plan gives the
// same answer. It needs no other frequency: x is real, so X[-h, w] = conj X[h, w] there, and the Hermitian part of Y
// is (Y(X) + conj Y(conj X)) / 2.
#pragma once

#include "activations.h"
#include "device.h"
#include "launch_plan.h"

namespace affnet {

template <typename T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

// 16 bytes of neighbouring channels' weights, loaded by one instruction.
template <typename T>
struct alignas(16) WeightVector {
  static constexpr int kCount = 16 / (2 * sizeof(T));
  Complex<T> at[kCount];
};

template <typename T>
struct MapArguments {
  Complex<T>* X;  // [block_images, D, H, F], unnormalised
  Complex<T>* G;  // [block_images, D, H, F], backward only: the spectrum of dy, replaced by that of dx
  const T* w1;    // [2, K, D, Dh]
  const T* b1;    // [2, K, Dh]
  const T* w2;    // [2, K, Dh, D]
  const T* b2;    // [2, K, D]
  T* partials;    // [K, ctas_per_block, partial_size], added to; null if no parameter gradients are wanted
  int64_t block_images;
  int64_t first;           // block-image i of the chunk belongs to block (first + i) % K
  int64_t ctas_per_block;  // not read by the FMA forward kernel
  int K, D, Dh, H, W;
  T scale;  // 1 / sqrt(H W), of the orthonormal transforms; the kernel applies both factors
  T threshold;
  Activation activation;
  bool input_grad;
};

// A thread's place in a tile: a group of channels at two frequencies. In a special tile the second frequency is the
// conjugate of the first.
template <int kTile>
struct Place {
  static constexpr int kLanes = kTile / 2;
  static constexpr int kStride = kTile + 1;  // of a channel's row in shared memory: odd, so columns have no conflicts

  int lane, group, groups;
  bool special;
  int frequency[2];  // index in the plane [H, F], -1 beyond its end

  AFFNET_DEVICE Place(const Tiling& tiling, int tile)
      : lane(thread_index() % kLanes),
        group(thread_index() / kLanes),
        groups(thread_count() / kLanes),
        special(tile >= tiling.regular_tiles) {
    if (special) {
      frequency[0] = frequency[1] = frequency_at(tiling, (tile - tiling.regular_tiles) * kLanes + lane);
    } else {
      frequency[0] = frequency_at(tiling, tile * kTile + lane);
      frequency[1] = frequency_at(tiling, tile * kTile + lane + kLanes);
    }
  }

  AFFNET_DEVICE int frequency_at(const Tiling& tiling, int index) const {
    const int columns = special ? tiling.special_columns : tiling.F - tiling.special_columns;
    const int h = index / columns, column = index % columns;
    if (h >= tiling.H) return -1;
    return h * tiling.F + (special ? column * (tiling.F - 1) : column + 1);
  }

  template <typename T>
  AFFNET_DEVICE uint32_t offset(uint32_t rows, int row, int f) const {
    return rows + static_cast<uint32_t>((row * kStride + lane + f * kLanes) * sizeof(Complex<T>));
  }

  // Both frequencies of a plane, scaled; zero beyond its end.
  template <typename T>
  AFFNET_DEVICE void load(Complex<T> (&value)[2], const Complex<T>* plane, T scale) const {
    for (int f = 0; f < 2; ++f) {
      value[f] = frequency[f] < 0 ? Complex<T>{T(0), T(0)} : plane[frequency[f]];
      value[f].re *= scale;
      value[f].im *= scale;
    }
    if (special) value[1].im = -value[1].im;
  }

  // Stores both, or their Hermitian part in a special tile.
  template <typename T>
  AFFNET_DEVICE void store(const Complex<T> (&value)[2], Complex<T>* plane, T scale) const {
    if (special) {
      if (frequency[0] < 0) return;
      const T half = T(0.5) * scale;
      plane[frequency[0]] = {half * (value[0].re + value[1].re), half * (value[0].im - value[1].im)};
      return;
    }
    for (int f = 0; f < 2; ++f) {
      if (frequency[f] >= 0) plane[frequency[f]] = {scale * value[f].re, scale * value[f].im};
    }
  }
};

// One block's complex matrix [inputs, outputs], stored as two real ones; `adjoint` is its conjugate transpose.
template <typename T>
struct Matrix {
  const T *re, *im;
  int inputs, outputs, input_stride, output_stride;
  T sign;  // multiplies the imaginary part

  AFFNET_DEVICE Matrix(const T* w, int64_t imaginary, int64_t block, int inputs, int outputs)
      : re(w + block * inputs * outputs),
        im(re + imaginary),
        inputs(inputs),
        outputs(outputs),
        input_stride(outputs),
        output_stride(1),
        sign(T(1)) {}

  AFFNET_DEVICE Matrix adjoint() const {
    Matrix m = *this;
    m.inputs = outputs, m.outputs = inputs;
    m.input_stride = output_stride, m.output_stride = input_stride;
    m.sign = -sign;
    return m;
  }
};

// Copies rows [first, first + rows) of w to the start of shared memory, complex, outputs padded with zeros.
template <typename T>
AFFNET_DEVICE void stage(const Matrix<T>& w, int first, int rows) {
  const int outputs = padded_outputs(w.outputs);
  for (int e = thread_index(); e < rows * outputs; e += thread_count()) {
    // Neighbouring threads read neighbouring addresses.
    const int i = w.input_stride == 1 ? e % rows : e / outputs, o = w.input_stride == 1 ? e / rows : e % outputs;
    Complex<T> value{T(0), T(0)};
    if (o < w.outputs) {
      const int at = (first + i) * w.input_stride + o * w.output_stride;
      value = {w.re[at], w.sign * w.im[at]};
    }
    shared_store(static_cast<uint32_t>((i * outputs + o) * sizeof(Complex<T>)), value);
  }
}

// acc += x w for a thread's channels at its two frequencies; x is [inputs, tile] in shared memory at `x_rows`. It
// starts with a barrier, so x may have been written by any thread just before.
template <typename T, int kTile>
AFFNET_DEVICE void block_linear(Complex<T> (&acc)[2][kThreadOutputs], const Place<kTile>& place, uint32_t x_rows,
                                const Matrix<T>& w) {
  constexpr int kRows = staged_rows(kTile, sizeof(Complex<T>));
  const int outputs = padded_outputs(w.outputs);
  for (int first = 0; first < w.inputs; first += kRows) {
    const int count = w.inputs - first < kRows ? w.inputs - first : kRows;
    barrier();
    stage(w, first, count);
    barrier();
    if (place.group * kThreadOutputs >= outputs) continue;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const Complex<T> x[2] = {shared_load<Complex<T>>(place.template offset<T>(x_rows, first + i, 0)),
                               shared_load<Complex<T>>(place.template offset<T>(x_rows, first + i, 1))};
#pragma unroll
      for (int o = 0; o < kThreadOutputs; o += WeightVector<T>::kCount) {
        const uint32_t at =
            static_cast<uint32_t>((i * outputs + place.group * kThreadOutputs + o) * sizeof(Complex<T>));
        const WeightVector<T> weights = shared_load<WeightVector<T>>(at);
#pragma unroll
        for (int j = 0; j < WeightVector<T>::kCount; ++j) {
          const Complex<T> v = weights.at[j];
#pragma unroll
          for (int f = 0; f < 2; ++f) {
            Complex<T>& a = acc[f][o + j];
            a.re += x[f].re * v.re;
            a.re -= x[f].im * v.im;
            a.im += x[f].re * v.im;
            a.im += x[f].im * v.re;
          }
        }
      }
    }
  }
}

// Sets both frequencies to the bias of the thread's channels, or to zero if `bias` is null.
template <typename T>
AFFNET_DEVICE void start(Complex<T> (&acc)[2][kThreadOutputs], const T* bias, int64_t imaginary, int group,
                         int outputs) {
  for (int o = 0; o < kThreadOutputs; ++o) {
    const int channel = group * kThreadOutputs + o;
    const bool exists = bias != nullptr && channel < outputs;
    acc[0][o] = acc[1][o] = exists ? Complex<T>{bias[channel], bias[imaginary + channel]} : Complex<T>{T(0), T(0)};
  }
}

template <typename T>
AFFNET_DEVICE T activate(T v, Activation activation) {
  return with_activation(activation, [&](auto a) { return activate<decltype(a)::value>(v); });
}

template <typename T>
AFFNET_DEVICE T activate_vjp(T d, T v, Activation activation) {
  return with_activation(activation, [&](auto a) { return activate_vjp<decltype(a)::value>(d, v); });
}

// The parameters of one block, and the offsets of its tile's arrays in shared memory, behind the staged weights.
template <typename T, int kTile>
struct Block {
  Matrix<T> w1, w2;
  const T *b1, *b2;
  uint32_t X, O1, P1, dP2;  // D, Dh, and backward only Dh, D rows of `kStride` complex numbers

  AFFNET_DEVICE Block(const MapArguments<T>& a, int k)
      : w1(a.w1, int64_t{a.K} * a.D * a.Dh, k, a.D, a.Dh),
        w2(a.w2, int64_t{a.K} * a.D * a.Dh, k, a.Dh, a.D),
        b1(a.b1 + int64_t{k} * a.Dh),
        b2(a.b2 + int64_t{k} * a.D) {
    constexpr uint32_t kRowBytes = Place<kTile>::kStride * sizeof(Complex<T>);
    X = static_cast<uint32_t>(staged_bytes(a.D, a.Dh, kTile, sizeof(Complex<T>)));
    O1 = X + a.D * kRowBytes;
    P1 = O1 + a.Dh * kRowBytes;
    dP2 = P1 + a.Dh * kRowBytes;
  }

  AFFNET_DEVICE void load_tile(const MapArguments<T>& a, const Place<kTile>& place, const Complex<T>* X_planes,
                               int64_t plane) const {
    for (int d = place.group; d < a.D; d += place.groups) {
      Complex<T> value[2];
      place.load(value, X_planes + d * plane, a.scale);
      for (int f = 0; f < 2; ++f) shared_store(place.template offset<T>(X, d, f), value[f]);
    }
  }

  // Computes the mask before soft-shrink at the thread's channels. Leaves O1 = act(P1) in shared memory, and P1 too if
  // `keep_P1`.
  AFFNET_DEVICE void mask(Complex<T> (&acc)[2][kThreadOutputs], const MapArguments<T>& a, const Place<kTile>& place,
                          bool keep_P1) const {
    start(acc, b1, int64_t{a.K} * a.Dh, place.group, a.Dh);
    block_linear<T, kTile>(acc, place, X, w1);
    for (int o = 0; o < kThreadOutputs; ++o) {
      const int channel = place.group * kThreadOutputs + o;
      if (channel >= a.Dh) break;
      for (int f = 0; f < 2; ++f) {
        const Complex<T> p = acc[f][o];
        if (keep_P1) shared_store(place.template offset<T>(P1, channel, f), p);
        shared_store(place.template offset<T>(O1, channel, f),
                     Complex<T>{activate(p.re, a.activation), activate(p.im, a.activation)});
      }
    }
    start(acc, b2, int64_t{a.K} * a.D, place.group, a.D);
    block_linear<T, kTile>(acc, place, O1, w2);
  }
};

// X := map(X), one CTA per tile.
template <typename T, int kTile>
AFFNET_KERNEL((kMaxThreads<T, false>))
map_kernel(MapArguments<T> a) {
  const Tiling tiling = tiling_of(a.H, a.W, kTile);
  const int64_t image = cta_index() / tiling.tiles, plane = int64_t{a.H} * tiling.F;
  const Place<kTile> place(tiling, static_cast<int>(cta_index() % tiling.tiles));
  const Block<T, kTile> block(a, static_cast<int>((a.first + image) % a.K));
  Complex<T>* const planes = a.X + image * a.D * plane;

  block.load_tile(a, place, planes, plane);
  Complex<T> acc[2][kThreadOutputs];
  block.mask(acc, a, place, false);
#pragma unroll
  for (int o = 0; o < kThreadOutputs; ++o) {
    const int d = place.group * kThreadOutputs + o;
    if (d >= a.D) break;
    Complex<T> Y[2];
    for (int f = 0; f < 2; ++f) {
      const Complex<T> x = shared_load<Complex<T>>(place.template offset<T>(block.X, d, f));
      const Complex<T> m{soft_shrink(acc[f][o].re, a.threshold), soft_shrink(acc[f][o].im, a.threshold)};
      Y[f] = {m.re * x.re - m.im * x.im, m.re * x.im + m.im * x.re};
    }
    place.store(Y, planes + d * plane, a.scale);
  }
}

}  // namespace affnet
