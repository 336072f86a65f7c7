// What the kernel is told and offers: plain data, free of torch and of any instruction set.
//
// A tile is one channel block of `images` images. Its planes are transformed with one vector lane per column, then one
// per row; with several small images in a tile, their columns and rows together fill the lanes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "activations.h"

namespace affnet {

enum class Storage { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline constexpr int kMaxSteps = 32;
inline constexpr int kMaxImagesLog2 = 3;

// A transform of some length as a sequence of radix steps.
template <typename T>
struct FftSteps {
  int length;
  int count;
  int radix[kMaxSteps];
  const T* twiddles[kMaxSteps];  // each [length / radix, radix] of (cos, sin); after them the roots of a large radix
};

template <typename T>
struct FftPlan {
  int length;
  int work_length;          // vectors that a transform needs in either of its two buffers
  FftSteps<T> steps;        // of this length, or of Bluestein's convolution
  const T* chirp;           // [length] of (cos, sin); null: not by Bluestein
  const T* chirp_spectrum;  // [steps.length]
};

// How the planes of one channel in a tile of `images` images lie in scratch memory.
//
// Columns are numbered through the images, `pitch` from one image to the next; column j shares a complex transform with
// column j + pairs. Of its spectrum the rows 0 .. height / 2 are kept; rows 0 and height / 2 are real by then and share
// a complex row. For odd heights the rows 0 of two images do. A row (image, kh) yields two slots for each kw <= width /
// 2: frequencies (kh, kw) and (-kh, kw); a shared row yields (0, kw) and (height / 2, kw), or kw of its two images.
// That is every frequency of the half spectrum once, except that for odd heights a lone image leaves slots that hold
// zero.
template <typename T>
struct Geometry {
  int height, width, images;
  int pitch;  // width, or more where images then fill vectors or halves of them
  int pairs;  // half of all columns
  int staging_stride;
  int row_stride;       // of one part of a row: the row buffer is [(height + 1) / 2, 2, row_stride]
  int rows;             // complex rows
  int slots;            // (width / 2 + 1) * 2 * rows
  int slot_stride;      // of one part of a channel's spectrum
  const int* row_re;    // [rows, rounded up to lanes] offset of a row's real part in the row buffer
  const int* row_im;    // and of its imaginary part
  const T* row_shared;  // 1 where two real rows share the complex one, else 0
  FftPlan<T> column_fft;
  FftPlan<T> row_fft;
};

template <typename T>
struct Call {
  const void* x;   // [B, C, H, W]
  const void* dy;  // [B, C, H, W], backward only
  void* out;       // [B, C, H, W], y or dx
  Storage storage;
  const T* w1;  // [2, K, D, Dh]
  const T* b1;  // [2, K, Dh]
  const T* w2;  // [2, K, Dh, D]
  const T* b2;  // [2, K, D]
  int64_t batch, height, width;
  int blocks, size, hidden;  // K, D, Dh
  T threshold;
  Activation activation;
  bool input_grad, parameter_grads;
  int images_log2;                                  // of a full tile
  const Geometry<T>* geometry[kMaxImagesLog2 + 1];  // of 1, 2, 4, ... images

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
