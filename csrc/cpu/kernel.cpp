// The kernel for one instruction set. setup.py compiles this file once for each, with AFFNET_CAPABILITY as the
// namespace of everything in it. It uses no function of the standard library that a linker could merge between the
// objects.
#include "kernel.h"

#include "channels_last.h"

#define AFFNET_STRING_OF(name) #name
#define AFFNET_STRING(name) AFFNET_STRING_OF(name)

namespace affnet::AFFNET_CAPABILITY {
namespace {

// 1 / sqrt(H W), the scale of the orthonormal transform.
template <typename T>
T transform_scale(const Call<T>& call) {
  return static_cast<T>(1 / __builtin_sqrt(static_cast<double>(call.height) * static_cast<double>(call.width)));
}

template <typename T>
size_t scratch_bytes(const Call<T>& call, bool backward) {
  return Scratch<T>(call, backward, nullptr).bytes;
}

template <typename T>
Tile tile_at(const Call<T>& call, int64_t k, int64_t index) {
  const auto [first, images_log2] = images_of_tile(call, index);
  return {k, first, images_log2};
}

// Images, or channels of a thin map, share transforms: one that is not finite, or much larger than the others, spoils
// these (see fft/energy.h). Such tiles are computed again with each image, and each of its channels, alone.
template <typename F>
void each_image_alone(const Tile& tile, F&& f) {
  for (int64_t image = 0; image < int64_t{1} << tile.images_log2; ++image) f(Tile{tile.k, tile.first + image, 0, true});
}

template <typename T>
Outcome compute(const Call<T>& call, const Block<T>& block, const Tile& tile, const Tile& next, bool backward, T scale,
                const Scratch<T>& scratch) {
  if (call.channels_last) {
    return backward ? backward_channels_last(call, block, tile, scale, scratch)
                    : forward_channels_last(call, block, tile, scale, scratch);
  }
  return backward ? backward_tile(call, block, tile, next, scale, scratch)
                  : forward_tile(call, block, tile, next, scale, scratch);
}

template <typename T>
void forward(const Call<T>& call, int64_t begin, int64_t end, char* memory) {
  const Scratch<T> scratch(call, false, memory);
  const T s = transform_scale(call), scale = s * s / 2;
  const int64_t tiles = call.tiles_per_block();
  for (int64_t k = begin / tiles; k * tiles < end; ++k) {
    const Block<T> block(call, k, scratch);
    block.pack(call, k, false, s / 2);
    const int64_t last = end < (k + 1) * tiles ? end : (k + 1) * tiles;
    for (int64_t i = begin > k * tiles ? begin : k * tiles; i < last; ++i) {
      const Tile tile = tile_at(call, k, i % tiles);
      const Tile next = i + 1 < end ? tile_at(call, (i + 1) / tiles, (i + 1) % tiles) : kNoTile;
      const Outcome outcome = compute(call, block, tile, next, false, scale, scratch);
      if (outcome == Outcome::kGood || !call.shares_transforms()) continue;
      each_image_alone(tile, [&](const Tile& alone) { compute(call, block, alone, kNoTile, false, scale, scratch); });
    }
  }
}

template <typename T>
void store_grads(const Call<T>& call, const Scratch<T>& sums, T w1_scale, T scale, const ParameterGrads<T>& to) {
  store_weight_grad(sums.dW1, call.size, call.hidden, w1_scale, to.w1[0], to.w1[1]);
  store_bias_grad(sums.dB1, call.hidden, scale, to.b1[0], to.b1[1]);
  store_weight_grad(sums.dW2, call.hidden, call.size, scale, to.w2[0], to.w2[1]);
  store_bias_grad(sums.dB2, call.size, scale, to.b2[0], to.b2[1]);
}

template <typename T>
void backward(const Call<T>& call, int k, bool packed, int64_t begin, int64_t end, const ParameterGrads<T>& grads,
              char* memory) {
  const Scratch<T> scratch(call, true, memory);
  const T s = transform_scale(call), scale = s * s / 2;
  const Block<T> block(call, k, scratch);
  if (!packed) block.pack(call, k, true, s / 2);
  scratch.clear_sums();
  Call<T> without_parameters = call;
  without_parameters.parameter_grads = false;
  bool finite = true;
  for (int64_t i = begin; i < end && (finite || !call.shares_transforms()); ++i) {
    // The next block's tile belongs to another call of this function, most often on the same thread.
    const Tile next = i + 1 < end           ? tile_at(call, k, i + 1)
                      : k + 1 < call.blocks ? tile_at(call, k + 1, begin)
                                            : kNoTile;
    const Tile tile = tile_at(call, k, i);
    const Outcome outcome = compute(call, block, tile, next, true, scale, scratch);
    finite = outcome != Outcome::kNotFinite;
    if (!finite || outcome == Outcome::kGood) continue;
    // The gradients of the parameters must not be added twice.
    const Call<T>& again = outcome == Outcome::kUnlikeOutputs ? without_parameters : call;
    each_image_alone(tile, [&](const Tile& alone) { compute(again, block, alone, kNoTile, true, scale, scratch); });
  }
  if (!finite && call.shares_transforms()) {  // the sums are not finite either
    scratch.clear_sums();
    for (int64_t i = begin; i < end; ++i) {
      each_image_alone(tile_at(call, k, i),
                       [&](const Tile& alone) { compute(call, block, alone, kNoTile, true, scale, scratch); });
    }
  }
  if (call.parameter_grads) store_grads(call, scratch, scale * s / 2, scale, grads);
}

template <typename T>
constexpr Kernel<T> kKernel{Vec<T>::kLanes, &scratch_bytes<T>, &forward<T>, &backward<T>};

}  // namespace

const Kernels kKernels{AFFNET_STRING(AFFNET_CAPABILITY), kKernel<float>, kKernel<double>};

}  // namespace affnet::AFFNET_CAPABILITY
