// What the kernel is told and offers: plain data, free of torch and of any instruction set.
//
// A tile is one channel block of `images` images; fft/geometry.h says how it lies in memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "activations.h"
#include "fft/geometry.h"

namespace affnet {

enum class Storage { kFloat64, kFloat32, kFloat16, kBFloat16 };

template <typename T>
struct Call {
  const void* x;   // [B, C, H, W]
  const void* dy;  // [B, C, H, W], backward only
  void* out;       // [B, C, H, W], y or dx
  Storage storage;
  bool channels_last;  // the format of all three; else they are contiguous
  const T* w1;         // [2, K, D, Dh]
  const T* b1;         // [2, K, Dh]
  const T* w2;         // [2, K, Dh, D]
  const T* b2;         // [2, K, D]
  int64_t batch, height, width;
  int blocks, size, hidden;  // K, D, Dh
  T threshold;
  Activation activation;
  bool input_grad, parameter_grads;
  int images_log2;                                  // of a full tile
  const Geometry<T>* geometry[kMaxImagesLog2 + 1];  // of 1, 2, 4, ... images
  const Geometry<T>* alone;                         // of one image, each channel transformed alone

  // Whether transforms are shared by images or channels, so that one that is not finite, or much larger than the
  // others, spoils these.
  bool shares_transforms() const { return images_log2 > 0 || geometry[0]->channels > 1; }

  // A channel block is cut into full tiles of 2^images_log2 images, and into tiles of smaller powers of two, the
  // largest first, for the images that are left.
  int64_t full_tiles() const { return batch >> images_log2; }
  int64_t tiles_per_block() const {
    return full_tiles() + __builtin_popcountll(batch & ((int64_t{1} << images_log2) - 1));
  }
};

// Where the gradients of one block's parameters are stored: [D, Dh], [Dh], [Dh, D], [D], real and imaginary parts
// apart.
template <typename T>
struct ParameterGrads {
  T *w1[2], *b1[2], *w2[2], *b2[2];
};

struct TileImages {
  int64_t first;
  int images_log2;
};

// The images of tile `index` of a channel block.
template <typename T>
TileImages images_of_tile(const Call<T>& call, int64_t index) {
  const int64_t full = call.full_tiles();
  if (index < full) return {index << call.images_log2, call.images_log2};
  int64_t first = full << call.images_log2;
  int64_t left = call.batch - first;
  for (int64_t skip = index - full;; --skip) {
    const int log2 = 63 - __builtin_clzll(static_cast<unsigned long long>(left));
    if (skip == 0) return {first, log2};
    first += int64_t{1} << log2;
    left -= int64_t{1} << log2;
  }
}

// The kernel for one value type and one capability.
template <typename T>
struct Kernel {
  int lanes;
  size_t (*scratch_bytes)(const Call<T>&, bool backward);
  // Tiles begin .. end of [K, tiles_per_block].
  void (*forward)(const Call<T>&, int64_t begin, int64_t end, char* scratch);
  // Tiles begin .. end of one block. The gradients of its parameters, summed over these tiles, are stored if asked for.
  // With `packed`, the previous call on this scratch memory was for the same block, whose packed weights are used
  // again.
  void (*backward)(const Call<T>&, int block, bool packed, int64_t begin, int64_t end, const ParameterGrads<T>&,
                   char* scratch);
};

struct Kernels {
  const char* name;
  Kernel<float> float32;
  Kernel<double> float64;
};

namespace baseline {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

}  // namespace affnet
