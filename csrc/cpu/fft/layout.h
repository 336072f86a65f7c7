// Decides how many images a tile holds and how their maps lie in it, once for each size of map.
#pragma once

#include <cstdint>
#include <memory>

#include "fft/geometry.h"

namespace affnet {

template <typename T>
struct TileLayout {
  int images_log2;                                  // of a full tile
  const Geometry<T>* geometry[kMaxImagesLog2 + 1];  // of 1, 2, 4, ... images, up to a full tile
  const Geometry<T>* alone;                         // of one image, each channel transformed alone
};

// For maps of height x width, blocks of `size` channels and vectors of `lanes`.
template <typename T>
std::shared_ptr<const TileLayout<T>> tile_layout(int64_t batch, int64_t height, int64_t width, int64_t size, int lanes);

}  // namespace affnet
