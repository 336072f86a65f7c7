// The mixer of bfloat16 tensors in one launch, forward: y = irfft2(M X) + x with X = rfft2(x).
//
// A CTA keeps one block and takes images one after another. A warp owns some of the planes: it loads them, transforms
// them, and later transforms them back and stores them. Only the map between needs all channels of a frequency, so a
// barrier before it and one after it are all that an image takes. The next image's planes are loaded, asynchronously,
// as soon as the present one's are stored.
//
// It has not run on a GPU: the host emulator runs it against float64, and the compile check counts its instructions.
#pragma once

#include "half_map.cuh"

namespace affnet {

template <int kTiles, int kQuads>
AFFNET_DEVICE void map_image(const HalfArguments& a, const HalfLayout& at, const Guard& guard) {
  if (!guard.fast || (a.activation != Activation::kRelu && a.activation != Activation::kSilu)) {
    map_slots<kTiles, kQuads, Activation::kIdentity, true>(a, at, guard);
  } else if (a.activation == Activation::kRelu) {
    map_slots<kTiles, kQuads, Activation::kRelu, false>(a, at, guard);
  } else {
    map_slots<kTiles, kQuads, Activation::kSilu, false>(a, at, guard);
  }
}

// Zeros in what no plane fills: the padding of x, the spectra and magnitudes of channels beyond D.
template <bool kWhole>
AFFNET_DEVICE void clear_padding(const HalfArguments& a, const HalfLayout& at) {
  const auto clear = [](uint32_t begin, uint32_t end) {
    const auto step = static_cast<uint32_t>(16 * thread_count());
#pragma unroll 1
    for (uint32_t i = begin + static_cast<uint32_t>(16 * thread_index()); i < end; i += step) {  // trips: cleared
      shared_store(i, Words4{{0, 0, 0, 0}});
    }
  };
  if (!kWhole) clear(at.x, at.staging);
  clear(static_cast<uint32_t>(2 * a.D) * at.stride, at.x);
  clear(at.magnitudes, at.bytes);
}

template <int kTiles, int kQuads, bool kWhole>
AFFNET_KERNEL(32 * half_warps(kTiles, kQuads), half_ctas(kTiles, kQuads))
half_forward_kernel(const HalfArguments a) {
  constexpr int kWarps = half_warps(kTiles, kQuads);
  const HalfLayout at = half_layout(kTiles, kQuads, a.D, kWarps, kWhole);
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  const int block = static_cast<int>(cta_index() % a.K), groups = static_cast<int>(cta_count() / a.K);
  const int planes = warp < a.D ? (a.D - warp + kWarps - 1) / kWarps : 0;  // of this warp
  const int plane_elements = a.H * a.W;
  const Granules granules(a);
  const auto first_of_image = [&](int image) { return (int64_t{image} * a.K + block) * a.D * plane_elements; };
  const auto place_of = [&](int d) { return at.x + static_cast<uint32_t>(d) * HalfPlanes<kTiles>::kBytes; };
  const auto load_planes = [&](int image) {
    const uint16_t* const x = a.x + first_of_image(image);
#pragma unroll 1
    for (int d = warp; d < a.D; d += kWarps) {  // trips: planes
      load_plane<kTiles, kWhole>(a, granules, x + d * plane_elements, place_of(d));
      copy_async_commit();
    }
  };

  int image = static_cast<int>(cta_index() / a.K);
  if (kWhole) load_planes(image);  // which takes longer than what follows
  clear_padding<kWhole>(a, at);
  stage_weights<kQuads>(a, at, block, a.activation == Activation::kSilu ? 0.5f : 1.f);
  stage_sums<kQuads>(a, at, block);
  barrier();
  if (!kWhole) load_planes(image);
  const Norms norms = load_norms<kQuads>(at);

#pragma unroll 1
  for (; image < a.B; image += groups) {  // trips: images
    {
      const ForwardConstants<kTiles> constants(a);
      int pending = kTiles == 1 ? 0 : planes - 1;  // small planes are waited for together
      if (kTiles == 1) wait_for_plane(0);
#pragma unroll 1
      for (int d = warp; d < a.D; d += kWarps, --pending) {  // trips: planes
        if (kTiles > 1) wait_for_plane(pending);
        warp_barrier();
        const float most = transform_plane<kTiles>(constants, place_of(d), d, a.root);
        if (lane == 0) shared_store(at.magnitudes + static_cast<uint32_t>(4 * d), most);
      }
    }
    barrier();
    const Guard guard(norms, largest_of(at.magnitudes, a.D), a.root, a.spread, a.activation);
    map_image<kTiles, kQuads>(a, at, guard);
    barrier();
    InverseConstants<kTiles> constants(a);
    uint16_t* const y = a.y + first_of_image(image);
    const bool more = image + groups < a.B;
    const uint16_t* const next = a.x + first_of_image(more ? image + groups : image);
#pragma unroll 1
    for (int d = warp; d < a.D; d += kWarps) {  // trips: planes
      const uint32_t from = place_of(d);
      const uint32_t to = kWhole ? from : at.staging + static_cast<uint32_t>(warp) * HalfPlanes<kTiles>::kBytes;
      const auto taken_back = shared_load<int>(at.exponents + static_cast<uint32_t>(4 * d));
      inverse_plane<kTiles>(constants, from, to, d, taken_back);
      warp_barrier();
      store_plane<kTiles, kWhole>(a, granules, y + d * plane_elements, to);
      warp_barrier();
      if (more) load_plane<kTiles, kWhole>(a, granules, next + d * plane_elements, from);
      copy_async_commit();
    }
  }
}

}  // namespace affnet
