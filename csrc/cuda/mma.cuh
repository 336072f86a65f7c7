// Complex matrix products on tensor cores at float32 accuracy, in registers from one layer to the next.
//
// A product's rows are 16 frequencies, and a step of it takes four channels, a quad, as eight real ones. Lane (g, t) of
// a warp holds channel t of each quad at rows g and g + 8. As the left operand (m16n8k8) these are its registers if the
// contraction runs over the real parts of the quad and then over the imaginary ones; as the result they are if columns
// 2 t and 2 t + 1 are the parts of channel t. So the result of a layer is the left operand of the next as it stands,
// and what is done to a number by itself (bias, activation, product with the spectrum) needs no other lane. The order
// of channels is in the weights: column n of a quad is part n % 2 of channel n / 2.
#pragma once

#include "spectral_map.cuh"

namespace affnet {

constexpr int kQuadChannels = 4, kTileRows = 16;

AFFNET_HOST_DEVICE constexpr int quads_of(int channels) { return (channels + kQuadChannels - 1) / kQuadChannels; }

struct Lane {
  int g, t;
  AFFNET_DEVICE Lane() : g(thread_index() % 32 / 4), t(thread_index() % 4) {}
};

// A lane's channel of a quad at its two rows.
struct Quad {
  Complex<float> row[2];
};

// v = hi + lo, both read as TF32: hi is v to the nearest, lo what is left, of which the hardware reads the first 11
// bits. A NaN may be lost in hi, but then it is in lo.
struct Split {
  float hi, lo;
  AFFNET_DEVICE explicit Split(float v) : hi(float_of((bits_of(v) + 0x1000) & 0xffffe000)), lo(v - hi) {}
};

// A left operand in two parts.
struct Left {
  float hi[4], lo[4];

  AFFNET_DEVICE Left(float a0, float a1, float a2, float a3) {
    const Split parts[4] = {Split(a0), Split(a1), Split(a2), Split(a3)};
#pragma unroll
    for (int i = 0; i < 4; ++i) hi[i] = parts[i].hi, lo[i] = parts[i].lo;
  }

  AFFNET_DEVICE explicit Left(const Quad& q) : Left(q.row[0].re, q.row[1].re, q.row[0].im, q.row[1].im) {}
};

struct Right {
  float hi[2], lo[2];

  AFFNET_DEVICE Right(float b0, float b1) {
    const Split parts[2] = {Split(b0), Split(b1)};
#pragma unroll
    for (int i = 0; i < 2; ++i) hi[i] = parts[i].hi, lo[i] = parts[i].lo;
  }
};

// c += a b without lo lo, which is below float32's last bit; the small products first.
AFFNET_DEVICE void multiply(float (&c)[4], const Left& a, const Right& b) {
  mma_tf32(c, a.lo, b.hi);
  mma_tf32(c, a.hi, b.lo);
  mma_tf32(c, a.hi, b.hi);
}

// A weight matrix in shared memory: [quads of inputs, quads of outputs, 4 inputs, 4 outputs], zero where there is no
// channel. Each number stands there once. A lane makes its two real weights of the parts when it reads them, which
// takes two selections and half the room, and the adjoint matrix is the same numbers, read by other lanes.
template <int kQuads>
struct Weights {
  static constexpr int kBytes =
      kQuads * kQuads * kQuadChannels * kQuadChannels * static_cast<int>(sizeof(Complex<float>));
  uint32_t at;

  AFFNET_DEVICE static uint32_t offset(int q, int j, int i, int o) {
    return static_cast<uint32_t>((((q * kQuads + j) * kQuadChannels + i) * kQuadChannels + o) * sizeof(Complex<float>));
  }

  // By all threads of a CTA, in the order of shared memory.
  AFFNET_DEVICE void stage(const Matrix<float>& w) const {
#pragma unroll 1
    for (int e = thread_index(); e < kBytes / static_cast<int>(sizeof(Complex<float>)); e += thread_count()) {
      const int tile = e / (kQuadChannels * kQuadChannels), inside = e % (kQuadChannels * kQuadChannels);
      const int i = tile / kQuads * kQuadChannels + inside / kQuadChannels;
      const int o = tile % kQuads * kQuadChannels + inside % kQuadChannels;
      Complex<float> value{0.f, 0.f};
      if (i < w.inputs && o < w.outputs) value = {w.re[i * w.outputs + o], w.im[i * w.outputs + o]};
      shared_store(at + static_cast<uint32_t>(e * sizeof(Complex<float>)), value);
    }
  }

  // Of quad q of the inputs and quad j of the outputs: to part g % 2 of output channel g / 2, from both parts of input
  // channel t.
  AFFNET_DEVICE Right right(int q, int j, const Lane& lane) const {
    const auto w = shared_load<Complex<float>>(at + offset(q, j, lane.t, lane.g / 2));
    const bool imaginary = lane.g % 2 == 1;
    return Right(imaginary ? w.im : w.re, imaginary ? w.re : -w.im);
  }

  // The same of the conjugate transpose.
  AFFNET_DEVICE Right adjoint_right(int q, int j, const Lane& lane) const {
    const auto w = shared_load<Complex<float>>(at + offset(j, q, lane.g / 2, lane.t));
    const bool imaginary = lane.g % 2 == 1;
    return Right(imaginary ? -w.im : w.re, imaginary ? w.re : w.im);
  }
};

// acc += x w of quad q of the inputs, for all outputs.
template <int kQuads, bool kAdjoint>
AFFNET_DEVICE void add_quad(Quad (&acc)[kQuads], const Quad& x, int q, const Weights<kQuads>& w, const Lane& lane) {
  const Left left(x);
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    Quad& to = acc[j];
    float c[4] = {to.row[0].re, to.row[0].im, to.row[1].re, to.row[1].im};
    multiply(c, left, kAdjoint ? w.adjoint_right(q, j, lane) : w.right(q, j, lane));
    to = {{{c[0], c[1]}, {c[2], c[3]}}};
  }
}

}  // namespace affnet
