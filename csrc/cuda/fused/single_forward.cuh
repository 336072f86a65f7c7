// The mixer of float32 in one launch: a CTA takes all channels of a block of some images at a time, and nothing but x is
// read and nothing but y is written. Not run on a GPU so far.
//
// Two channels are one complex plane z, so that every transform is a complex one, computed by one thread in registers
// (fft_registers.cuh): columns, rows, the map, rows back, columns back, a barrier between each. Where X_a and X_b are
// the spectra of the two channels of a plane, Z = X_a + i X_b, and as both channels are real,
//
//     2 X_a[f] = Z[f] + conj Z[-f]        2 i X_b[f] = Z[f] - conj Z[-f]
//
// A warp maps 16 frequencies and, through these formulas, their negatives, so only half of them (single_rows.cuh).
//
// Scales are folded into the parameters: of the spectrum into the first layer's weights, of both transforms back into
// the second layer and the threshold, as soft-shrink is homogeneous. The residual is added to the mask: y is the inverse
// transform of (M + 1) X, which costs one addition and leaves x out of the second half of the kernel.
#pragma once

#include "fft_registers.cuh"
#include "single.h"
#include "single_map.cuh"

namespace affnet {

// A pass over the planes of a CTA's images, one transform per thread; `run` has the length of the transform.
template <typename Layout>
struct SinglePass {
  const Layout& layout;
  int block;
  int64_t first_image;

  AFFNET_DEVICE SinglePass(const Layout& layout, int block, int64_t first_image)
      : layout(layout), block(block), first_image(first_image) {}

  // The offset in x and y of the first channel of a plane, and how far from it the second one is, 0 if there is none. An
  // image beyond the last one is taken for the last one.
  struct Channels {
    int64_t at;
    int second;
    bool exist;
  };

  AFFNET_DEVICE Channels channels(int plane) const {
    const SingleArguments& a = layout.a;
    const int image = layout.image_of(plane), c = 2 * (plane - image * layout.planes);
    const int64_t b = first_image + image;
    const int size = layout.H() * layout.W();
    return {(((b < a.B ? b : a.B - 1) * a.K + block) * a.D + c) * size, c + 1 < a.D ? size : 0, b < a.B};
  }
};

AFFNET_DEVICE Complex<float> exchanged(const Complex<float>& v) { return {v.im, v.re}; }

template <typename Layout>
struct ColumnPass : SinglePass<Layout> {
  using SinglePass<Layout>::SinglePass;

  template <int N>
  AFFNET_DEVICE void run(int plane, int w) const {
    const auto from = this->channels(plane);
    const float* const x = this->layout.a.x + from.at + w;
    Complex<float> v[N];
#pragma unroll
    for (int h = 0; h < N; ++h) v[h] = {x[h * this->layout.W()], x[h * this->layout.W() + from.second]};
    transform<N>(v);
    const uint32_t at = this->layout.offset(this->layout.place_of(plane), 0, w);
#pragma unroll
    for (int h = 0; h < N; ++h) shared_store(at + h * this->layout.row_bytes(), v[h]);
  }
};

template <typename Layout>
struct RowPass : SinglePass<Layout> {
  using SinglePass<Layout>::SinglePass;

  template <int N>
  AFFNET_DEVICE void run(int plane, int k) const {
    const uint32_t at = this->layout.offset(this->layout.place_of(plane), k, 0);
    Complex<float> v[N];
#pragma unroll
    for (int w = 0; w < N; ++w) v[w] = shared_load<Complex<float>>(at + w * 8);
    transform<N>(v);
#pragma unroll
    for (int w = 0; w < N; ++w) shared_store(at + w * 8, v[w]);
  }
};

template <typename Layout>
struct InverseRowPass : SinglePass<Layout> {
  using SinglePass<Layout>::SinglePass;

  template <int N>
  AFFNET_DEVICE void run(int plane, int k) const {
    const uint32_t at = this->layout.offset(this->layout.place_of(plane), k, 0);
    Complex<float> v[N];
#pragma unroll
    for (int w = 0; w < N; ++w) v[w] = exchanged(shared_load<Complex<float>>(at + w * 8));
    transform<N>(v);
#pragma unroll
    for (int w = 0; w < N; ++w) shared_store(at + w * 8, exchanged(v[w]));
  }
};

template <typename Layout>
struct InverseColumnPass : SinglePass<Layout> {
  using SinglePass<Layout>::SinglePass;

  template <int N>
  AFFNET_DEVICE void run(int plane, int w) const {
    const uint32_t at = this->layout.offset(this->layout.place_of(plane), 0, w);
    Complex<float> v[N];
#pragma unroll
    for (int h = 0; h < N; ++h) v[h] = exchanged(shared_load<Complex<float>>(at + h * this->layout.row_bytes()));
    transform<N>(v);
    const auto to = this->channels(plane);
    if (!to.exist) return;
    float* const y = this->layout.a.y + to.at + w;
#pragma unroll
    for (int h = 0; h < N; ++h) y[h * this->layout.W()] = v[h].im;
    if (to.second == 0) return;
#pragma unroll
    for (int h = 0; h < N; ++h) y[h * this->layout.W() + to.second] = v[h].re;
  }
};

// run<N>() of a pass, where N is kLength or, if that is 0, a length known at run time.
template <int kLength, typename Pass>
AFFNET_DEVICE void run_length(const Pass& pass, int length, int plane, int at) {
  if constexpr (kLength > 0) {
    pass.template run<kLength>(plane, at);
  } else {
    switch (length) {
#define AFFNET_CASE(N)               \
  case N:                            \
    pass.template run<N>(plane, at); \
    break;
      AFFNET_CASE(7)
      AFFNET_CASE(8)
      AFFNET_CASE(10)
      AFFNET_CASE(14)
      AFFNET_CASE(16)
      AFFNET_CASE(20)
      AFFNET_CASE(28)
      AFFNET_CASE(32)
      AFFNET_CASE(40)
#undef AFFNET_CASE
    }
  }
}

// All transforms of a pass, `across` to a plane.
template <int kLength, typename Pass>
AFFNET_DEVICE void run_pass(const Pass& pass, int length, int across) {
  const int planes = pass.layout.a.images * pass.layout.planes, items = transform_items(planes, across);
#pragma unroll 1
  for (int item = thread_index(); item < items; item += kSingleThreads) {  // trips: transforms
    const TransformPlace place = transform_place(item, across);
    if (across == 8 && place.plane >= planes) continue;
    run_length<kLength>(pass, length, place.plane, place.at);
  }
}

// Zeros in the planes that an image has for the quads' sake only.
template <typename Layout>
AFFNET_DEVICE void clear_missing_planes(const Layout& layout) {
  const int missing = Layout::kImagePlanes - layout.planes, size = static_cast<int>(layout.plane_bytes() / 8);
#pragma unroll 1
  for (int e = thread_index(); e < layout.a.images * missing * size; e += kSingleThreads) {  // trips: missing
    const int image = e / (missing * size);
    const uint32_t plane = layout.offset(image * Layout::kImagePlanes + layout.planes, 0, 0);
    shared_store(plane + (e - image * missing * size) * 8, Complex<float>{0.f, 0.f});
  }
}

// The CTAs of a block take its images in turn, a.images at a time.
template <int kH, int kW, int kQuads>
AFFNET_KERNEL(kSingleThreads, single_ctas(kH, kW, kQuads))
single_forward_kernel(SingleArguments a) {
  using Layout = SingleLayout<kH, kW, kQuads>;
  using Layers = SingleLayers<kQuads>;
  const Layout layout(a);
  const int ctas = static_cast<int>(a.ctas_per_block), block = static_cast<int>(cta_index()) / ctas;
  const float size = static_cast<float>(layout.H() * layout.W()), scale = 0.5f / size;
  Layers::stage(0, a.w1, a.b1, a, block, 0.5f / sqrtf(size), 1.f);
  Layers::stage(1, a.w2, a.b2, a, block, scale, scale);

  clear_missing_planes(layout);
  const int64_t stride = a.ctas_per_block * a.images;
#pragma unroll 1
  for (int64_t first = cta_index() % ctas * a.images; first < a.B; first += stride) {  // trips: images
    run_pass<kH>(ColumnPass<Layout>(layout, block, first), layout.H(), layout.W());
    barrier();
    run_pass<kW>(RowPass<Layout>(layout, block, first), layout.W(), layout.H());
    barrier();
    map_planes<kQuads>(layout, scale * a.threshold, scale);
    barrier();
    run_pass<kW>(InverseRowPass<Layout>(layout, block, first), layout.W(), layout.H());
    barrier();
    // A thread has the same columns here and at the start of the next images, so no barrier follows.
    run_pass<kH>(InverseColumnPass<Layout>(layout, block, first), layout.H(), layout.W());
  }
}



}  // namespace affnet
