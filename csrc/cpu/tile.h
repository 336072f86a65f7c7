// One tile, forward and backward: transform -> spectral map -> inverse transform, all in scratch memory.
//
// Scales. The transforms are unnormalised and leave a factor of 2: X = s/2 * (what they return), s = 1/sqrt(H W). The
// factor goes into w1, and into the s^2/2 that scales the branch. Backward, the spectrum of dy also carries half the
// Hermitian weight, so that sums over its slots are sums over the full spectrum, and dx has the same scale s^2/2.
#pragma once

#include "spectral_map.h"

namespace affnet::AFFNET_CAPABILITY {

// The planes of channel c of block k, from image `first` on, of a tensor [B, C, H, W].
template <typename Pointee, typename T>
Planes<Pointee> planes_of(const Call<T>& call, Pointee* data, int64_t first, int64_t k, int c) {
  using Byte = std::conditional_t<std::is_const_v<Pointee>, const char, char>;
  const int64_t plane = call.height * call.width, channels = int64_t{call.blocks} * call.size;
  const int64_t offset = ((first * channels) + k * call.size + c) * plane;
  return {static_cast<Byte*>(data) + offset * storage_bytes(call.storage), channels * plane, call.storage};
}

// `finite` holds sums of 0 * output, which are 0 unless an output is not finite.
template <typename T>
bool all_finite(Vec<T> finite) {
  for (int l = 0; l < Vec<T>::kLanes; ++l) {
    if (finite.raw[l] != finite.raw[l]) return false;
  }
  return true;
}

// Channel block k of 2^images_log2 images from `first` on; no tile if k < 0.
struct Tile {
  int64_t k, first;
  int images_log2;
  bool alone = false;  // one image, each channel transformed alone
};

constexpr Tile kNoTile{-1, 0, 0};

template <typename T>
const Geometry<T>& geometry_of(const Call<T>& call, const Tile& tile) {
  return tile.alone ? *call.alone : *call.geometry[tile.images_log2];
}

// Queues a tile's part of a tensor [B, C, H, W], where the planes of a block are contiguous in each image.
template <typename T>
void prefetch(const Call<T>& call, const Tile& tile, const void* data, Prefetcher& prefetcher) {
  if (tile.k < 0) return;
  for (int64_t image = 0; image < int64_t{1} << tile.images_log2; ++image) {
    prefetcher.add(planes_of(call, data, tile.first + image, tile.k, 0).data,
                   call.size * call.height * call.width * storage_bytes(call.storage));
  }
}

// Calls f(first channel, whether to keep the energy) for each chunk of channels, which it transforms, and returns
// whether those that share transforms are alike.
template <typename T, typename F>
bool transform_channels(const Geometry<T>& g, int size, const TransformScratch<T>& scratch, F&& f) {
  Energies<T> energies(g, scratch);
  each_channel_chunk(g, size, [&](int c) AFFNET_LAMBDA {
    f(c, g.planes() > 1);
    energies.end_chunk();
  });
  return energies.alike();
}

// What became of a tile. Unless it is kGood, its images, or its channels if the map is thin, have spoiled each other in
// the transforms that they share, and must be computed alone.
enum class Outcome {
  kGood,
  kUnlikeInputs,   // backward, x or dy is of unlike magnitude; nothing has been computed yet
  kUnlikeOutputs,  // the branch, or dx - dy, is; the gradients of the parameters are good
  kNotFinite,      // some output is not finite
};

// Computes the tile's part of y. The next tile's x is prefetched meanwhile.
template <typename T>
Outcome forward_tile(const Call<T>& call, const Block<T>& block, const Tile& tile, const Tile& next, T scale,
                     const Scratch<T>& scratch) {
  const int64_t k = tile.k, first = tile.first;
  const Geometry<T>& g = geometry_of(call, tile);
  const ptrdiff_t channel = 2 * static_cast<ptrdiff_t>(g.slot_stride);
  each_channel_chunk(g, call.size, [&](int c) AFFNET_LAMBDA {
    to_spectrum(g, planes_of(call, call.x, first, k, c), scratch.X + c * channel, false, false, scratch.transform);
  });
  Prefetcher prefetcher;
  prefetch<T>(call, tile, call.out, prefetcher);
  prefetch<T>(call, next, call.x, prefetcher);
  with_activation(call.activation, [&](auto a) { spectral_map<a()>(call, g, block, prefetcher, scratch); });
  Vec<T> finite(T(0));
  const bool outputs_alike =
      transform_channels(g, call.size, scratch.transform, [&](int c, bool keep_energy) AFFNET_LAMBDA {
        from_spectrum(g, scratch.X + c * channel, planes_of(call, call.x, first, k, c),
                      planes_of(call, call.out, first, k, c), scale, false, keep_energy, finite, scratch.transform);
      });
  return !all_finite(finite) ? Outcome::kNotFinite : outputs_alike ? Outcome::kGood : Outcome::kUnlikeOutputs;
}

// Computes the tile's part of dx, if asked for. The gradients of the parameters are added, unscaled, to the partial
// sums in scratch memory.
template <typename T>
Outcome backward_tile(const Call<T>& call, const Block<T>& block, const Tile& tile, const Tile& next, T scale,
                      const Scratch<T>& scratch) {
  const int64_t k = tile.k, first = tile.first;
  constexpr int kLanes = Vec<T>::kLanes;
  const Geometry<T>& g = geometry_of(call, tile);
  const ptrdiff_t channel = 2 * static_cast<ptrdiff_t>(g.slot_stride);
  const bool x_alike = transform_channels(g, call.size, scratch.transform, [&](int c, bool keep_energy) AFFNET_LAMBDA {
    to_spectrum(g, planes_of(call, call.x, first, k, c), scratch.X + c * channel, false, keep_energy,
                scratch.transform);
  });
  if (!x_alike) return Outcome::kUnlikeInputs;
  const bool dy_alike = transform_channels(g, call.size, scratch.transform, [&](int c, bool keep_energy) AFFNET_LAMBDA {
    to_spectrum(g, planes_of(call, call.dy, first, k, c), scratch.G + c * channel, true, keep_energy,
                scratch.transform);
  });
  if (!dy_alike) return Outcome::kUnlikeInputs;
  Prefetcher prefetcher;
  if (call.input_grad) prefetch<T>(call, tile, call.out, prefetcher);
  prefetch<T>(call, next, call.x, prefetcher);
  prefetch<T>(call, next, call.dy, prefetcher);
  const ptrdiff_t slots = round_up(g.slots, kLanes);
  prefetcher.divide(slots / kLanes * 2 * (output_chunks(call.hidden) + output_chunks(call.size)));
  const ptrdiff_t chunks = (slots + kMaxGradientChunk - 1) / kMaxGradientChunk;
  const ptrdiff_t chunk_slots = round_up((slots + chunks - 1) / chunks, kLanes);
  for (ptrdiff_t slot = 0; slot < slots; slot += chunk_slots) {
    const ptrdiff_t count = slots - slot < chunk_slots ? slots - slot : chunk_slots;
    const int vectors = static_cast<int>(count / kLanes);
    const Channels<const T> X = read(interleaved(scratch.X, g.slot_stride) + slot);
    const Channels<T> G = interleaved(scratch.G, g.slot_stride) + slot;
    with_activation(call.activation,
                    [&](auto a) { spectral_map_vjp<a()>(call, block, X, G, count, prefetcher, scratch); });
    if (!call.parameter_grads) continue;
    const Channels<const T> O1 = read(interleaved(scratch.O1, scratch.gradient_chunk));
    const Channels<const T> dP1 = read(interleaved(scratch.dP1, scratch.gradient_chunk));
    const Channels<const T> dP2 = read(interleaved(scratch.dP2, scratch.gradient_chunk));
    add_weight_grad(X, dP1, vectors, call.size, call.hidden, scratch.dW1);
    add_bias_grad(dP1, vectors, call.hidden, scratch.dB1);
    add_weight_grad(O1, dP2, vectors, call.hidden, call.size, scratch.dW2);
    add_bias_grad(dP2, vectors, call.size, scratch.dB2);
  }
  if (!call.input_grad) return Outcome::kGood;
  Vec<T> finite(T(0));
  const bool outputs_alike =
      transform_channels(g, call.size, scratch.transform, [&](int c, bool keep_energy) AFFNET_LAMBDA {
        from_spectrum(g, scratch.G + c * channel, planes_of(call, call.dy, first, k, c),
                      planes_of(call, call.out, first, k, c), scale, true, keep_energy, finite, scratch.transform);
      });
  return !all_finite(finite) ? Outcome::kNotFinite : outputs_alike ? Outcome::kGood : Outcome::kUnlikeOutputs;
}

}  // namespace affnet::AFFNET_CAPABILITY
