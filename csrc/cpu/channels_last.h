// A tile of tensors in the channels-last format, [B, H, W, C] in memory: computed on copies of its planes, which the
// caches hold.
#pragma once

#include "simd/shuffle.h"
#include "tile.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename V>
AFFNET_INLINE int at_most_lanes(int64_t count) {
  return count < V::kLanes ? static_cast<int>(count) : V::kLanes;
}

// Calls f(first pixel, pixels, first channel, channels) for blocks of at most kLanes pixels and kLanes channels.
template <typename V, typename F>
AFFNET_INLINE void each_square(int64_t pixels, int channels, F&& f) {
  for (int64_t p = 0; p < pixels; p += V::kLanes) {
    for (int c = 0; c < channels; c += V::kLanes) f(p, at_most_lanes<V>(pixels - p), c, at_most_lanes<V>(channels - c));
  }
}

// planes[c, p] = image[p, c], where the pixels of the image are `stride` elements apart.
template <typename T, typename Element>
void to_planes(const Element* image, int64_t stride, int64_t pixels, int channels, T* planes) {
  using V = Vec<T>;
  each_square<V>(pixels, channels, [&](int64_t p, int height, int c, int width) AFFNET_LAMBDA {
    V square[V::kLanes];
    unroll<V::kLanes>([&](auto i) AFFNET_LAMBDA {
      square[i] = i < height ? load_as<T>(image + (p + i) * stride + c, width) : V(T(0));
    });
    transpose(square);
    for (int j = 0; j < width; ++j) store_first(square[j], planes + (c + j) * pixels + p, height);
  });
}

// image[p, c] = planes[c, p], rounded once.
template <typename T, typename Element>
void from_planes(const T* planes, int64_t stride, int64_t pixels, int channels, Element* image) {
  using V = Vec<T>;
  each_square<V>(pixels, channels, [&](int64_t p, int height, int c, int width) AFFNET_LAMBDA {
    V square[V::kLanes];
    unroll<V::kLanes>([&](auto j) AFFNET_LAMBDA {
      square[j] = j < width ? load_first(planes + (c + j) * pixels + p, height) : V(T(0));
    });
    transpose(square);
    for (int i = 0; i < height; ++i) store_as(square[i], image + (p + i) * stride + c, width);
  });
}

// Calls f(pixel 0 of the tile's channels, planes) for each image of a tile.
template <typename T, typename Element, typename F>
void each_image(const Call<T>& call, const Tile& tile, Element* tensor, T* planes, F&& f) {
  const int64_t pixels = call.height * call.width, channels = int64_t{call.blocks} * call.size;
  for (int64_t image = 0; image < int64_t{1} << tile.images_log2; ++image) {
    f(tensor + (tile.first + image) * pixels * channels + tile.k * call.size, planes + image * call.size * pixels);
  }
}

template <typename T>
void gather(const Call<T>& call, const Tile& tile, const void* tensor, T* planes) {
  with_storage<T>(call.storage, [&](auto* element) AFFNET_LAMBDA {
    using Element = const std::remove_pointer_t<decltype(element)>;
    each_image(call, tile, static_cast<Element*>(tensor), planes, [&](Element* image, T* to) AFFNET_LAMBDA {
      to_planes(image, int64_t{call.blocks} * call.size, call.height * call.width, call.size, to);
    });
  });
}

template <typename T>
void scatter(const Call<T>& call, const Tile& tile, T* planes, void* tensor) {
  with_storage<T>(call.storage, [&](auto* element) AFFNET_LAMBDA {
    using Element = std::remove_pointer_t<decltype(element)>;
    each_image(call, tile, static_cast<Element*>(tensor), planes, [&](Element* image, T* from) AFFNET_LAMBDA {
      from_planes(from, int64_t{call.blocks} * call.size, call.height * call.width, call.size, image);
    });
  });
}

// The same call on copies of a tile's planes: a tensor [images, D, H, W] of its own, in which it is the only tile.
template <typename T>
Call<T> on_planes(const Call<T>& call, const T* x, const T* dy, T* out) {
  Call<T> planes = call;
  planes.x = x;
  planes.dy = dy;
  planes.out = out;
  planes.storage = kOwnStorage<T>;
  planes.blocks = 1;
  return planes;
}

inline Tile only_tile(const Tile& tile) { return {0, 0, tile.images_log2, tile.alone}; }

// As forward_tile.
template <typename T>
Outcome forward_channels_last(const Call<T>& call, const Block<T>& block, const Tile& tile, T scale,
                              const Scratch<T>& scratch) {
  T *const x = scratch.planes[0], *const y = scratch.planes[1];
  gather(call, tile, call.x, x);
  const Call<T> planes = on_planes<T>(call, x, nullptr, y);
  const Outcome outcome = forward_tile(planes, block, only_tile(tile), kNoTile, scale, scratch);
  scatter(call, tile, y, call.out);
  return outcome;
}

// As backward_tile. Once the spectrum of x is known, dx can take the place of x.
template <typename T>
Outcome backward_channels_last(const Call<T>& call, const Block<T>& block, const Tile& tile, T scale,
                               const Scratch<T>& scratch) {
  T *const x = scratch.planes[0], *const dy = scratch.planes[1], *const dx = x;
  gather(call, tile, call.x, x);
  gather(call, tile, call.dy, dy);
  const Call<T> planes = on_planes<T>(call, x, dy, dx);
  const Outcome outcome = backward_tile(planes, block, only_tile(tile), kNoTile, scale, scratch);
  if (call.input_grad) scatter(call, tile, dx, call.out);
  return outcome;
}

}  // namespace affnet::AFFNET_CAPABILITY
