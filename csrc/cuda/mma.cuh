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
};

// c += a b without lo lo, which is below float32's last bit; the small products first.
//
// A tensor core rounds towards zero, so a long sum in its accumulator shrinks by half a bit a step (Ootomo and Yokota,
// arXiv 2203.03341). The sum of a step starts from zero, and is added to the others as float32 adds.
AFFNET_DEVICE void multiply(float (&c)[4], const Left& a, const Right& b) {
  float step[4] = {0.f, 0.f, 0.f, 0.f};
  mma_tf32(step, a.lo, b.hi);
  mma_tf32(step, a.hi, b.lo);
  mma_tf32(step, a.hi, b.hi);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += step[i];
}

// A complex number in two parts.
struct alignas(16) SplitComplex {
  Complex<float> hi, lo;

  AFFNET_DEVICE static SplitComplex of(const Complex<float>& v) {
    const Split re(v.re), im(v.im);
    return {{re.hi, im.hi}, {re.lo, im.lo}};
  }
};

// A weight matrix in shared memory: [quads of inputs, quads of outputs, 4 inputs, 4 outputs], zero where there is no
// channel. Each number stands there once. A lane selects the real weights of its column when it reads them, which takes
// half the room, and the adjoint matrix is the same numbers, read by other lanes.
template <int kQuads>
struct Weights {
  static constexpr int kTile = kQuadChannels * kQuadChannels;
  static constexpr int kBytes = kQuads * kQuads * kTile * static_cast<int>(sizeof(SplitComplex));
  uint32_t at;

  // Both four inputs of an output and four outputs of an input are in different banks.
  AFFNET_DEVICE uint32_t offset(int q, int j, int i, int o) const {
    return at +
           static_cast<uint32_t>(((q * kQuads + j) * kTile + i * kQuadChannels + (o ^ i / 2)) * sizeof(SplitComplex));
  }

  // By all threads of a CTA, in the order of shared memory.
  AFFNET_DEVICE void stage(const Matrix<float>& w) const {
#pragma unroll 1
    for (int e = thread_index(); e < kQuads * kQuads * kTile; e += thread_count()) {
      const int tile = e / kTile, row = e % kTile / kQuadChannels;
      const int i = tile / kQuads * kQuadChannels + row;
      const int o = tile % kQuads * kQuadChannels + (e % kQuadChannels ^ row / 2);
      Complex<float> value{0.f, 0.f};
      if (i < w.inputs && o < w.outputs) value = {w.re[i * w.outputs + o], w.im[i * w.outputs + o]};
      shared_store(at + static_cast<uint32_t>(e * sizeof(SplitComplex)), SplitComplex::of(value));
    }
  }

  // Of quad q of the inputs and quad j of the outputs: to part g % 2 of output channel g / 2, from both parts of input
  // channel t.
  AFFNET_DEVICE Right right(int q, int j, const Lane& lane) const {
    const auto w = shared_load<SplitComplex>(offset(q, j, lane.t, lane.g / 2));
    const bool imaginary = lane.g % 2 == 1;
    return {{imaginary ? w.hi.im : w.hi.re, imaginary ? w.hi.re : -w.hi.im},
            {imaginary ? w.lo.im : w.lo.re, imaginary ? w.lo.re : -w.lo.im}};
  }

  // The same of the conjugate transpose.
  AFFNET_DEVICE Right adjoint_right(int q, int j, const Lane& lane) const {
    const auto w = shared_load<SplitComplex>(offset(j, q, lane.g / 2, lane.t));
    const bool imaginary = lane.g % 2 == 1;
    return {{imaginary ? -w.hi.im : w.hi.re, imaginary ? w.hi.re : w.hi.im},
            {imaginary ? -w.lo.im : w.lo.re, imaginary ? w.lo.re : w.lo.im}};
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
