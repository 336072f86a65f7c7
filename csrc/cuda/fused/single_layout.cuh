// Where the one-launch float32 kernel has its parameters and planes in shared memory.
#pragma once

#include "../mma.cuh"
#include "single_arguments.h"

namespace affnet {

// Sizes and places; known to the compiler if kH and kW are not 0.
template <int kH, int kW, int kQuads>
struct SingleLayout {
  static constexpr PlaneStrides kStrides = kH > 0 ? plane_strides(kH, kW) : PlaneStrides{};
  static constexpr int kRowStride = kStrides.row, kPlaneStride = kStrides.plane;
  static constexpr int kUnitTiles = single_unit_tiles(kQuads);
  static constexpr int kImagePlanes = 2 * kQuads;  // in shared memory; those that the block has not are zero
  static constexpr uint32_t kWeightBytes = kQuads * kQuads * kWarpThreads * 16;  // of a layer
  static constexpr uint32_t kBiasBytes = kQuads * kQuadChannels * 8;
  static_assert(2 * (kWeightBytes + kBiasBytes) == single_layer_bytes(kQuads));

  const SingleArguments& a;
  int planes;      // of an image that the block has
  uint32_t start;  // of the planes in shared memory

  AFFNET_DEVICE SingleLayout(const SingleArguments& a, uint32_t start) : a(a), planes((a.D + 1) / 2), start(start) {}

  AFFNET_DEVICE int H() const { return kH > 0 ? kH : a.H; }
  AFFNET_DEVICE int W() const { return kW > 0 ? kW : a.W; }
  AFFNET_DEVICE uint32_t row_bytes() const { return (kH > 0 ? kRowStride : a.strides.row) * 8; }
  AFFNET_DEVICE uint32_t plane_bytes() const { return (kH > 0 ? kPlaneStride : a.strides.plane) * 8; }

  AFFNET_DEVICE uint32_t offset(int plane, int row, int column) const {
    return start + plane * plane_bytes() + row * row_bytes() + column * 8;
  }

  // The image of a plane, when the planes that exist are counted through all images, of which there are up to four.
  AFFNET_DEVICE int image_of(int plane) const {
    return (plane >= planes) + (plane >= 2 * planes) + (plane >= 3 * planes);
  }

  // How many of a CTA's images there are from this one on.
  AFFNET_DEVICE int images_from(int64_t first) const {
    return a.B - first < a.images ? static_cast<int>(a.B - first) : a.images;
  }

  // The place of a plane among all planes.
  AFFNET_DEVICE int place_of(int plane) const { return plane + image_of(plane) * (kImagePlanes - planes); }
};

// The channel of a lane in a quad. Lane t of quads 2 q and 2 q + 1 has both channels of plane 4 q + t. If the number of
// quads is odd, the last one has two planes: lanes t and t + 2 have the two channels of plane 4 q + t.
template <int kQuads>
AFFNET_DEVICE int channel_of(int quad, int t) {
  if (kQuads % 2 == 1 && quad == kQuads - 1) return kQuadChannels * quad + 2 * (t % 2) + t / 2;
  return 2 * kQuadChannels * (quad / 2) + 2 * t + quad % 2;
}

}  // namespace affnet
