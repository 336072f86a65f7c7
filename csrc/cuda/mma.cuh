// Complex matrix products on tensor cores at float32 accuracy; numbers stay in registers from one layer to the next.
//
// The rows of a product are 16 frequencies. One instruction (m16n8k8) contracts four complex channels, a quad, as eight
// real numbers. Lane (g, t) of a warp holds channel t of every quad at rows g and g + 8. These registers are a left
// operand if the contraction runs over the quad's real parts first and its imaginary parts next, and they are a result
// if columns 2 t and 2 t + 1 are the real and the imaginary part of channel t. So the result of one layer is the left
// operand of the next without any exchange, and elementwise work (bias, activation, product with the spectrum) needs no
// other lane. Only the weights must be arranged for it: column n of a quad is the real (n even) or imaginary part of
// channel n / 2.
#pragma once

#include "spectral_map.cuh"

namespace affnet {

struct Lane {
  int g, t;
  AFFNET_DEVICE Lane() : g(thread_index() % 32 / 4), t(thread_index() % 4) {}
};

// A lane's channel of a quad at its two rows.
struct Quad {
  Complex<float> row[2];
};

// v = hi + lo as two TF32 numbers: hi is v rounded to nearest, lo the remainder, of which the hardware reads the first
// 11 bits. If rounding turns a NaN into infinity in hi, lo is still a NaN.
struct Split {
  float hi, lo;
  AFFNET_DEVICE explicit Split(float v) : hi(float_of((bits_of(v) + 0x1000) & 0xffffe000)), lo(v - hi) {}
};

// A left operand, split.
struct Left {
  float hi[4], lo[4];

  AFFNET_DEVICE Left() {}

  AFFNET_DEVICE Left(float a0, float a1, float a2, float a3) {
    const Split parts[4] = {Split(a0), Split(a1), Split(a2), Split(a3)};
#pragma unroll
    for (int i = 0; i < 4; ++i) hi[i] = parts[i].hi, lo[i] = parts[i].lo;
  }

  AFFNET_DEVICE explicit Left(const Quad& q) : Left(q.row[0].re, q.row[1].re, q.row[0].im, q.row[1].im) {}
};

// A right operand, split.
struct Right {
  float hi[2], lo[2];
};

// c += a b, small products first and without lo * lo, which is below float32's last bit.
//
// A tensor core rounds towards zero, so a long sum in its accumulator loses half a bit per instruction (Ootomo and
// Yokota, arXiv 2203.03341). Each product is therefore summed from zero and added to c by an ordinary float32 addition.
AFFNET_DEVICE void multiply(float (&c)[4], const Left& a, const Right& b) {
  float product[4] = {0.f, 0.f, 0.f, 0.f};
  mma_tf32(product, a.lo, b.hi);
  mma_tf32(product, a.hi, b.lo);
  mma_tf32(product, a.hi, b.hi);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += product[i];
}

// A complex number, split.
struct alignas(16) SplitComplex {
  Complex<float> hi, lo;

  AFFNET_DEVICE static SplitComplex of(const Complex<float>& v) {
    const Split re(v.re), im(v.im);
    return {{re.hi, im.hi}, {re.lo, im.lo}};
  }
};

// A weight matrix in shared memory: [quads of inputs, quads of outputs, 4 inputs, 4 outputs], padded with zeros. Each
// complex number is stored once, half of what real 8 x 8 tiles would take: a lane picks the real weights of its column
// when it reads. The adjoint matrix is the same memory read by different lanes.
template <int kQuads>
struct Weights {
  static constexpr int kQuadPair = kQuadChannels * kQuadChannels;  // weights from one quad to another
  static constexpr int kBytes = mma_weight_bytes(kQuads);
  static_assert(kBytes == kQuads * kQuads * kQuadPair * static_cast<int>(sizeof(SplitComplex)));
  uint32_t at;

  // The exclusive or puts the four inputs of an output, and the four outputs of an input, in different banks.
  AFFNET_DEVICE uint32_t offset(int q, int j, int i, int o) const {
    return at + static_cast<uint32_t>(((q * kQuads + j) * kQuadPair + i * kQuadChannels + (o ^ i / 2)) *
                                      sizeof(SplitComplex));
  }

  // Copies w to shared memory, by all threads of a CTA.
  AFFNET_DEVICE void stage(const Matrix<float>& w) const {
#pragma unroll 1
    for (int e = thread_index(); e < kQuads * kQuads * kQuadPair; e += thread_count()) {
      const int pair = e / kQuadPair, row = e % kQuadPair / kQuadChannels;
      const int i = pair / kQuads * kQuadChannels + row;
      const int o = pair % kQuads * kQuadChannels + (e % kQuadChannels ^ row / 2);
      Complex<float> value{0.f, 0.f};
      if (i < w.inputs && o < w.outputs) value = {w.re[i * w.outputs + o], w.im[i * w.outputs + o]};
      shared_store(at + static_cast<uint32_t>(e * sizeof(SplitComplex)), SplitComplex::of(value));
    }
  }

  // The lane's operand from quad q of the inputs to quad j of the outputs: column g is the real (g even) or imaginary
  // part of output channel g / 2, rows t and t + 4 are the parts of input channel t.
  AFFNET_DEVICE Right right(int q, int j, const Lane& lane) const {
    const auto w = shared_load<SplitComplex>(offset(q, j, lane.t, lane.g / 2));
    const bool imaginary = lane.g % 2 == 1;
    return {{imaginary ? w.hi.im : w.hi.re, imaginary ? w.hi.re : -w.hi.im},
            {imaginary ? w.lo.im : w.lo.re, imaginary ? w.lo.re : -w.lo.im}};
  }

  // The same for the conjugate transpose.
  AFFNET_DEVICE Right adjoint_right(int q, int j, const Lane& lane) const {
    const auto w = shared_load<SplitComplex>(offset(j, q, lane.g / 2, lane.t));
    const bool imaginary = lane.g % 2 == 1;
    return {{imaginary ? -w.hi.im : w.hi.re, imaginary ? w.hi.re : w.hi.im},
            {imaginary ? -w.lo.im : w.lo.re, imaginary ? w.lo.re : w.lo.im}};
  }
};

// acc += x w, where x is quad q of the inputs; all outputs.
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
