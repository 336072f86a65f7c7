// The transforms of the one-launch float32 kernels: passes over the planes of a CTA's images, one transform per thread.
// The passes are structures because the length of a transform may be known only at run time.
#pragma once

#include "fft_registers.cuh"
#include "single_columns.cuh"
#include "single_layout.cuh"

namespace affnet {

// The channels of a plane: the offset of the first one in a tensor [B, K D, H, W], and how far from it the second one
// is, 0 if there is none. An image beyond the last one is taken for the last one.
struct PlaneChannels {
  int64_t at;
  int second;
  bool exist;

  template <typename Layout>
  AFFNET_DEVICE PlaneChannels(const Layout& layout, int block, int64_t first_image, int plane) {
    const SingleArguments& a = layout.a;
    const int image = layout.image_of(plane), c = 2 * (plane - image * layout.planes);
    const int64_t b = first_image + image;
    const int size = layout.H() * layout.W();
    at = (((b < a.B ? b : a.B - 1) * a.K + block) * a.D + c) * size;
    second = c + 1 < a.D ? size : 0;
    exist = b < a.B;
  }
};

AFFNET_DEVICE Complex<float> exchanged(const Complex<float>& v) { return {v.im, v.re}; }

template <typename Layout>
struct ColumnPass {
  const Layout& layout;
  int block;
  int64_t first_image;
  const void* tensor;  // [B, K D, H, W]

  AFFNET_DEVICE ColumnPass(const Layout& layout, int block, int64_t first_image, const void* tensor)
      : layout(layout), block(block), first_image(first_image), tensor(tensor) {}

  template <int N>
  AFFNET_DEVICE void run(int plane, int w) const {
    const PlaneChannels from(layout, block, first_image, plane);
    Complex<float> v[N];
    load_column(v, layout.a.element, tensor, {from.at + w, layout.W(), from.second});
    transform<N>(v);
    const uint32_t at = layout.offset(layout.place_of(plane), 0, w);
#pragma unroll
    for (int h = 0; h < N; ++h) shared_store(at + h * layout.row_bytes(), v[h]);
  }
};

template <typename Layout>
struct RowPass {
  const Layout& layout;

  AFFNET_DEVICE explicit RowPass(const Layout& layout) : layout(layout) {}

  template <int N>
  AFFNET_DEVICE void run(int plane, int k) const {
    const uint32_t at = layout.offset(layout.place_of(plane), k, 0);
    Complex<float> v[N];
#pragma unroll
    for (int w = 0; w < N; ++w) v[w] = shared_load<Complex<float>>(at + w * 8);
    transform<N>(v);
#pragma unroll
    for (int w = 0; w < N; ++w) shared_store(at + w * 8, v[w]);
  }
};

template <typename Layout>
struct InverseRowPass {
  const Layout& layout;

  AFFNET_DEVICE explicit InverseRowPass(const Layout& layout) : layout(layout) {}

  template <int N>
  AFFNET_DEVICE void run(int plane, int k) const {
    const uint32_t at = layout.offset(layout.place_of(plane), k, 0);
    Complex<float> v[N];
#pragma unroll
    for (int w = 0; w < N; ++w) v[w] = exchanged(shared_load<Complex<float>>(at + w * 8));
    transform<N>(v);
#pragma unroll
    for (int w = 0; w < N; ++w) shared_store(at + w * 8, exchanged(v[w]));
  }
};

template <typename Layout>
struct InverseColumnPass {
  const Layout& layout;
  int block;
  int64_t first_image;
  void* tensor;  // [B, K D, H, W]

  AFFNET_DEVICE InverseColumnPass(const Layout& layout, int block, int64_t first_image, void* tensor)
      : layout(layout), block(block), first_image(first_image), tensor(tensor) {}

  template <int N>
  AFFNET_DEVICE void run(int plane, int w) const {
    const uint32_t at = layout.offset(layout.place_of(plane), 0, w);
    Complex<float> v[N];
#pragma unroll
    for (int h = 0; h < N; ++h) v[h] = exchanged(shared_load<Complex<float>>(at + h * layout.row_bytes()));
    transform<N>(v);
    const PlaneChannels to(layout, block, first_image, plane);
    if (!to.exist) return;
    store_column(v, layout.a.element, tensor, {to.at + w, layout.W(), to.second});
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
  for (int item = thread_index(); item < items; item += thread_count()) {  // trips: transforms
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
  for (int e = thread_index(); e < layout.a.images * missing * size; e += thread_count()) {  // trips: missing
    const int image = e / (missing * size);
    const uint32_t plane = layout.offset(image * Layout::kImagePlanes + layout.planes, 0, 0);
    shared_store(plane + (e - image * missing * size) * 8, Complex<float>{0.f, 0.f});
  }
}

}  // namespace affnet
