// How large the images and channels that share transforms are, so that unlike ones can be transformed apart.
//
// The columns of two images are the real and the imaginary part of one complex transform, and other images share the
// rows of odd heights. Rounding errors are relative to the larger partner: beside an image 2^24 times as large, an
// image's spectrum in float32 is nothing but the error. The mask grows with the spectrum, so inputs 2^12 apart already
// give such branches. Therefore the energy, the sum of squares, of what the inverse transforms return is kept for each
// image, and a tile of unlike images is computed again with each image alone. Going forward that suffices: where x is
// unlike, so is the branch. Backward, a large x may meet a small dy. There the energies of x and dy are kept too, and a
// tile of unlike ones is given up before it adds to the gradients of the parameters.
//
// A zero image beside others is unlike them, and alone it comes out exactly; images that are all zero are alike.
#pragma once

#include "fft/vector_transforms.h"

namespace affnet::AFFNET_CAPABILITY {

// Ratios of energies. Images may be 2^5 apart: the smaller one's error is then at most 2^5 times as large as alone.
// Channels of a thin map may be 2^8 apart, because the errors of a small channel vanish in the image as a whole.
inline constexpr double kMostOfImages = 1 << 10, kMostOfChannels = 1 << 16;

// Adds the energies of vector v of the columns, of the first and the second column of each pair.
template <typename T>
AFFNET_INLINE void add_energy(const TransformScratch<T>& scratch, int v, Vec<T> first, Vec<T> second) {
  T* const to = scratch.energy + 2 * v * Vec<T>::kLanes;
  (Vec<T>::load(to) + first).store(to);
  (Vec<T>::load(to + Vec<T>::kLanes) + second).store(to + Vec<T>::kLanes);
}

// The same, of all columns of planes in staging memory.
template <typename T>
void add_staged_energy(const Geometry<T>& g, const T* staging, const TransformScratch<T>& scratch) {
  using V = Vec<T>;
  for (int v = 0; v < vectors_of(g.pairs, V::kLanes); ++v) {
    const T* first = staging + vector_start(v, g.pairs, V::kLanes);
    V first_energy(T(0)), second_energy(T(0));
    for (int h = 0; h < g.height; ++h, first += g.staging_stride) {
      const V re = V::load(first), im = V::load(first + g.pairs);
      first_energy += re * re, second_energy += im * im;
    }
    add_energy(scratch, v, first_energy, second_energy);
  }
}

// The energies of a tile's images, from those of its columns.
template <typename T>
class Energies {
 public:
  Energies(const Geometry<T>& g, const TransformScratch<T>& scratch) : g_(g), columns_(scratch.energy) {
    if (g.planes() > 1) clear();
  }

  // To be called after each chunk of channels. Where a chunk is one channel, the columns' energies are left to grow.
  AFFNET_INLINE void end_chunk() {
    if (g_.channels > 1) add_chunk();
  }

  // Whether all images, and the channels transformed together, are so alike that none suffers from another's errors.
  bool alike() {
    if (g_.planes() == 1) return true;
    if (g_.channels == 1) add_chunk();
    return channels_alike_ && is_alike(images_, g_.images, T(kMostOfImages));
  }

 private:
  static constexpr int kLanes = Vec<T>::kLanes;

  static bool is_alike(const T* energies, int count, T most) {
    T least = energies[0], largest = energies[0];
    bool finite = true;
    for (int i = 0; i < count; ++i) {
      least = energies[i] < least ? energies[i] : least;
      largest = energies[i] > largest ? energies[i] : largest;
      finite = finite && energies[i] * T(0) == T(0);  // those that have overflowed cannot be compared
    }
    return finite && largest <= most * least;
  }

  void clear() {
    for (int i = 0; i < 2 * kLanes * vectors_of(g_.pairs, kLanes); ++i) columns_[i] = 0;
  }

  // The last vector may overlap the one before it, whose columns are not counted twice.
  AFFNET_INLINE T of_column(int column) const {
    const int part = column >= g_.pairs ? 1 : 0, pair = column - part * g_.pairs;
    const int v = static_cast<int>(static_cast<unsigned>(pair) / kLanes);
    return columns_[(2 * v + part) * kLanes + pair - vector_start(v, g_.pairs, kLanes)];
  }

  void add_chunk() {
    T channels[2 * kLanes] = {};
    int first = 0;  // column of the plane
    for (int image = 0; image < g_.images; ++image) {
      for (int channel = 0; channel < g_.channels; ++channel, first += g_.pitch) {
        T energy = 0;
        for (int column = first; column < first + g_.width; ++column) energy += of_column(column);
        images_[image] += energy;
        channels[channel] += energy;
      }
    }
    channels_alike_ = channels_alike_ && is_alike(channels, g_.channels, T(kMostOfChannels));
    if (g_.channels > 1) clear();
  }

  const Geometry<T>& g_;
  T* columns_;  // [vectors, 2, kLanes]
  T images_[1 << kMaxImagesLog2] = {};
  bool channels_alike_ = true;
};

}  // namespace affnet::AFFNET_CAPABILITY
