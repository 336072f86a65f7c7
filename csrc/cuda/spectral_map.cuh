// The spectral map on a CUDA device, between two cuFFT transforms: forward and vector-Jacobian product, in place.
//
// A CTA takes the channels of one block at a tile of frequencies and keeps them in shared memory through both layers; a
// thread computes `kOuts` channels at two frequencies. Every size is exact: no channel is padded in memory. This is the
// plain FMA form, of float64 and of the sizes that the tensor cores do not take, see mma_quads in spectral_map_mma.cuh.
//
// The masked spectrum is not Hermitian in the columns w = 0 and w = W/2, since the mask treats real and imaginary part
// apart. The definition (a complex inverse along H, then one along W that ignores what should not be there) keeps the
// Hermitian part of those columns, while a 2-D complex-to-real plan may read only half of them. So the kernels write
// that Hermitian part: x is real, so X[-h, w] = conj X[h, w] there, and (Y(X) + conj Y(conj X)) / 2 needs no other
// frequency. Whatever symmetry the plan assumes, it then holds.
#pragma once

#include "activations.h"
#include "device.h"
#include "hermitian_weight.h"

namespace affnet {

constexpr int kOuts = 4;
constexpr int kMaxChannels = 128;  // of D and Dh

// More than `launch_for` ever asks for: it tells the compiler how many registers a thread may have.
template <typename T, bool kBackward>
constexpr int kMaxThreads = sizeof(T) == 4 ? (kBackward ? 384 : 640) : (kBackward ? 256 : 384);

template <typename T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

// Neighbouring channels' weights, read at once.
template <typename T>
struct alignas(16) Outs {
  Complex<T> at[16 / (2 * sizeof(T))];
};

template <typename T>
struct MapArguments {
  Complex<T>* X;  // [units, D, H, F], unnormalised; a unit is one block of one image
  Complex<T>* G;  // [units, D, H, F], backward only: the spectrum of dy, replaced by that of dx
  const T* w1;    // [2, K, D, Dh]
  const T* b1;    // [2, K, Dh]
  const T* w2;    // [2, K, Dh, D]
  const T* b2;    // [2, K, D]
  T* partials;    // [K, runs, partial_size], added to; null: no parameter gradients are wanted
  int64_t units;
  int64_t first_unit;  // unit u holds block (first_unit + u) % K
  int64_t runs;        // CTAs that share the units of a block
  int K, D, Dh, H, W;
  T scale;  // 1 / sqrt(H W), of the orthonormal transforms; the kernel applies both factors
  T threshold;
  Activation activation;
  bool input_grad;
};

// Parameter gradients of one block: dw1 [2, D, Dh], db1 [2, Dh], dw2 [2, Dh, D], db2 [2, D].
AFFNET_HOST_DEVICE constexpr int64_t partial_size(int D, int Dh) { return 4 * int64_t{D} * Dh + 2 * (D + Dh); }

struct Launch {
  int tile;  // frequencies
  int threads;
  int shared_bytes;
};

// Rows of a weight matrix that are staged at a time: 128 bytes of each column.
template <typename T>
constexpr int kRows = 128 / (2 * sizeof(T));

AFFNET_HOST_DEVICE constexpr int padded_outs(int channels) { return (channels + kOuts - 1) / kOuts * kOuts; }

template <typename T>
Launch launch_with_tile(int D, int Dh, bool backward, int tile) {
  const int most = padded_outs(D > Dh ? D : Dh), rows = (backward ? 2 : 1) * (D + Dh);
  const int threads = (most / kOuts * (tile / 2) + 31) / 32 * 32;
  return {tile, threads, (kRows<T> * most + rows * (tile + 1)) * static_cast<int>(sizeof(Complex<T>))};
}

// The largest tile that leaves room for several CTAs on a multiprocessor, or the smallest there is.
template <typename T>
Launch launch_for(int D, int Dh, bool backward) {
  int tile = 64;
  while (tile > 8 && launch_with_tile<T>(D, Dh, backward, tile).shared_bytes > 48 * 1024) tile /= 2;
  return launch_with_tile<T>(D, Dh, backward, tile);
}

// Tiles of a plane: those of the columns that stand for two of the full spectrum come first. The others, the special
// ones, take half as many frequencies: with each goes its conjugate.
struct Tiling {
  int H, F, special_columns, regular_tiles, tiles;
};

AFFNET_HOST_DEVICE inline Tiling tiling_of(int H, int W, int tile) {
  const int F = W / 2 + 1, special = hermitian_weight(0, W) + (W > 1 && hermitian_weight(F - 1, W) == 1 ? 1 : 0);
  const int regular_tiles = static_cast<int>((int64_t{H} * (F - special) + tile - 1) / tile);
  return {H, F, special, regular_tiles, regular_tiles + (H * special + tile / 2 - 1) / (tile / 2)};
}

// A thread's two frequencies and its channels. In a special tile the second is the first one's conjugate.
template <int kTile>
struct Place {
  static constexpr int kLanes = kTile / 2;
  static constexpr int kStride = kTile + 1;  // of a channel's row in shared memory: odd, so that a column is as fast

  int lane, group, groups;
  bool special;
  int frequency[2];  // in the plane; -1: none

  AFFNET_DEVICE Place(const Tiling& tiling, int tile)
      : lane(thread_index() % kLanes),
        group(thread_index() / kLanes),
        groups(thread_count() / kLanes),
        special(tile >= tiling.regular_tiles) {
    if (special) {
      frequency[0] = frequency[1] = item(tiling, (tile - tiling.regular_tiles) * kLanes + lane);
    } else {
      frequency[0] = item(tiling, tile * kTile + lane);
      frequency[1] = item(tiling, tile * kTile + lane + kLanes);
    }
  }

  AFFNET_DEVICE int item(const Tiling& tiling, int index) const {
    const int columns = special ? tiling.special_columns : tiling.F - tiling.special_columns;
    const int h = index / columns, column = index % columns;
    if (h >= tiling.H) return -1;
    return h * tiling.F + (special ? column * (tiling.F - 1) : column + 1);
  }

  template <typename T>
  AFFNET_DEVICE uint32_t offset(uint32_t rows, int row, int slot) const {
    return rows + static_cast<uint32_t>((row * kStride + lane + slot * kLanes) * sizeof(Complex<T>));
  }

  // Both frequencies of a plane, scaled; zero where there is none.
  template <typename T>
  AFFNET_DEVICE void load(Complex<T> (&value)[2], const Complex<T>* plane, T scale) const {
    for (int slot = 0; slot < 2; ++slot) {
      value[slot] = frequency[slot] < 0 ? Complex<T>{T(0), T(0)} : plane[frequency[slot]];
      value[slot].re *= scale;
      value[slot].im *= scale;
    }
    if (special) value[1].im = -value[1].im;
  }

  // Stores both, or the Hermitian part.
  template <typename T>
  AFFNET_DEVICE void store(const Complex<T> (&value)[2], Complex<T>* plane, T scale) const {
    if (special) {
      if (frequency[0] < 0) return;
      const T half = T(0.5) * scale;
      plane[frequency[0]] = {half * (value[0].re + value[1].re), half * (value[0].im - value[1].im)};
      return;
    }
    for (int slot = 0; slot < 2; ++slot) {
      if (frequency[slot] >= 0) plane[frequency[slot]] = {scale * value[slot].re, scale * value[slot].im};
    }
  }
};

// A complex matrix [inputs, outputs] in two real ones, read as it lies or as its conjugate transpose.
template <typename T>
struct Matrix {
  const T *re, *im;
  int inputs, outputs, input_stride, output_stride;
  T sign;  // of the imaginary part

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

// Rows [first, first + rows) of w to shared memory at 0, complex, the outputs padded with zeros.
template <typename T>
AFFNET_DEVICE void stage(const Matrix<T>& w, int first, int rows) {
  const int outputs = padded_outs(w.outputs);
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

// acc += x w, for a thread's channels at its two frequencies; x is [inputs, tile] in shared memory at `rows`. It starts
// with a barrier: what the CTA wrote before is there to be read.
template <typename T, int kTile>
AFFNET_DEVICE void block_linear(Complex<T> (&acc)[2][kOuts], const Place<kTile>& place, uint32_t rows,
                                const Matrix<T>& w) {
  constexpr int kAtOnce = sizeof(Outs<T>) / sizeof(Complex<T>);
  const int outputs = padded_outs(w.outputs);
  for (int first = 0; first < w.inputs; first += kRows<T>) {
    const int count = w.inputs - first < kRows<T> ? w.inputs - first : kRows<T>;
    barrier();
    stage(w, first, count);
    barrier();
    if (place.group * kOuts >= outputs) continue;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const Complex<T> x[2] = {shared_load<Complex<T>>(place.template offset<T>(rows, first + i, 0)),
                               shared_load<Complex<T>>(place.template offset<T>(rows, first + i, 1))};
#pragma unroll
      for (int o = 0; o < kOuts; o += kAtOnce) {
        const uint32_t at = static_cast<uint32_t>((i * outputs + place.group * kOuts + o) * sizeof(Complex<T>));
        const Outs<T> weights = shared_load<Outs<T>>(at);
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const Complex<T> v = weights.at[j];
#pragma unroll
          for (int slot = 0; slot < 2; ++slot) {
            Complex<T>& a = acc[slot][o + j];
            a.re += x[slot].re * v.re;
            a.re -= x[slot].im * v.im;
            a.im += x[slot].re * v.im;
            a.im += x[slot].im * v.re;
          }
        }
      }
    }
  }
}

// Both slots begin as the bias of the thread's channels; `bias` null: as zero.
template <typename T>
AFFNET_DEVICE void start(Complex<T> (&acc)[2][kOuts], const T* bias, int64_t imaginary, int group, int outputs) {
  for (int o = 0; o < kOuts; ++o) {
    const int channel = group * kOuts + o;
    const bool there = bias != nullptr && channel < outputs;
    acc[0][o] = acc[1][o] = there ? Complex<T>{bias[channel], bias[imaginary + channel]} : Complex<T>{T(0), T(0)};
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

// One block of the call: its weights, and where its tiles lie in shared memory, behind the staged weights.
template <typename T, int kTile>
struct Block {
  Matrix<T> w1, w2;
  const T *b1, *b2;
  uint32_t X, O1, P1, dP2;  // [D], [Dh], then backward only [Dh], [D]; rows of `kStride` complex numbers

  AFFNET_DEVICE Block(const MapArguments<T>& a, int k)
      : w1(a.w1, int64_t{a.K} * a.D * a.Dh, k, a.D, a.Dh),
        w2(a.w2, int64_t{a.K} * a.D * a.Dh, k, a.Dh, a.D),
        b1(a.b1 + int64_t{k} * a.Dh),
        b2(a.b2 + int64_t{k} * a.D) {
    constexpr uint32_t kRowBytes = Place<kTile>::kStride * sizeof(Complex<T>);
    X = static_cast<uint32_t>(kRows<T> * padded_outs(a.D > a.Dh ? a.D : a.Dh) * sizeof(Complex<T>));
    O1 = X + a.D * kRowBytes;
    P1 = O1 + a.Dh * kRowBytes;
    dP2 = P1 + a.Dh * kRowBytes;
  }

  AFFNET_DEVICE void load_tile(const MapArguments<T>& a, const Place<kTile>& place, const Complex<T>* X_planes,
                               int64_t plane) const {
    for (int d = place.group; d < a.D; d += place.groups) {
      Complex<T> value[2];
      place.load(value, X_planes + d * plane, a.scale);
      for (int slot = 0; slot < 2; ++slot) shared_store(place.template offset<T>(X, d, slot), value[slot]);
    }
  }

  // The mask before soft-shrink, of the thread's channels. Leaves act(P1) in shared memory, and P1 if `keep`.
  AFFNET_DEVICE void mask(Complex<T> (&acc)[2][kOuts], const MapArguments<T>& a, const Place<kTile>& place,
                          bool keep) const {
    start(acc, b1, int64_t{a.K} * a.Dh, place.group, a.Dh);
    block_linear<T, kTile>(acc, place, X, w1);
    for (int o = 0; o < kOuts; ++o) {
      const int channel = place.group * kOuts + o;
      if (channel >= a.Dh) break;
      for (int slot = 0; slot < 2; ++slot) {
        const Complex<T> p = acc[slot][o];
        if (keep) shared_store(place.template offset<T>(P1, channel, slot), p);
        shared_store(place.template offset<T>(O1, channel, slot),
                     Complex<T>{activate(p.re, a.activation), activate(p.im, a.activation)});
      }
    }
    start(acc, b2, int64_t{a.K} * a.D, place.group, a.D);
    block_linear<T, kTile>(acc, place, O1, w2);
  }
};

// X := map(X). One CTA a tile.
template <typename T, int kTile>
AFFNET_KERNEL((kMaxThreads<T, false>))
map_kernel(MapArguments<T> a) {
  const Tiling tiling = tiling_of(a.H, a.W, kTile);
  const int64_t unit = cta_index() / tiling.tiles, plane = int64_t{a.H} * tiling.F;
  const Place<kTile> place(tiling, static_cast<int>(cta_index() % tiling.tiles));
  const Block<T, kTile> block(a, static_cast<int>((a.first_unit + unit) % a.K));
  Complex<T>* const planes = a.X + unit * a.D * plane;

  block.load_tile(a, place, planes, plane);
  Complex<T> acc[2][kOuts];
  block.mask(acc, a, place, false);
#pragma unroll
  for (int o = 0; o < kOuts; ++o) {
    const int d = place.group * kOuts + o;
    if (d >= a.D) break;
    Complex<T> Y[2];
    for (int slot = 0; slot < 2; ++slot) {
      const Complex<T> x = shared_load<Complex<T>>(place.template offset<T>(block.X, d, slot));
      const Complex<T> m{soft_shrink(acc[slot][o].re, a.threshold), soft_shrink(acc[slot][o].im, a.threshold)};
      Y[slot] = {m.re * x.re - m.im * x.im, m.re * x.im + m.im * x.re};
    }
    place.store(Y, planes + d * plane, a.scale);
  }
}

}  // namespace affnet
