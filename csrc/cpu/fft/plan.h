// Geometries and FFT plans with the tables they point to, made once for each map size and kept.
#pragma once

#include <memory>

#include "kernel.h"

namespace affnet {

// How many images, as a power of two, a tile should hold: so many that their columns and rows fill the lanes, and not
// so many that a tile outgrows the cache.
int choose_images_log2(int64_t batch, int64_t height, int64_t width, int64_t size, int lanes, size_t value_bytes);

// The geometry of `images` images of height x width, for vectors of `lanes`.
template <typename T>
std::shared_ptr<const Geometry<T>> geometry_of(int64_t height, int64_t width, int images, int lanes);

}  // namespace affnet
