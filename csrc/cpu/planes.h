// The planes of a tensor that are transformed together, and their columns as the transforms load and store them.
#pragma once

#include "kernel.h"
#include "simd/half.h"
#include "simd/vec.h"

namespace affnet::AFFNET_CAPABILITY {

// The planes [height, width] of consecutive channels in consecutive images; those of one image are contiguous.
template <typename Pointee>
struct Planes {
  Pointee* data;
  int64_t image_stride;  // in elements
  Storage storage;
};

// How a vector of columns lies in memory: as a whole; as its first lanes, the others being unused; or as two halves,
// each in an image of its own and perhaps shorter than half a vector.
enum class Access { kWhole, kFirst, kHalves };

// Columns in memory. Column j of `first` and column j of `second` share a complex transform.
template <typename T>
struct Columns {
  T* first;
  T* second;
  ptrdiff_t stride;       // between rows
  ptrdiff_t vector_step;  // between vectors of columns, unless kWhole
  ptrdiff_t half_step;    // kHalves: between the halves of a vector
  int count;              // lanes used, of a vector or of each half
  Access access;
};

template <Access kAccess, typename T>
AFFNET_INLINE Vec<std::remove_const_t<T>> load_columns(const Columns<T>& columns, T* p) {
  using V = Vec<std::remove_const_t<T>>;
  if constexpr (kAccess == Access::kWhole) return V::load(p);
  if constexpr (kAccess == Access::kFirst) return load_first(p, columns.count);
  return load_halves(p, p + columns.half_step, columns.count);
}

template <Access kAccess, typename T>
AFFNET_INLINE void store_columns(const Columns<T>& columns, Vec<T> v, T* p) {
  if constexpr (kAccess == Access::kWhole) {
    v.store(p);
  } else if constexpr (kAccess == Access::kFirst) {
    store_first(v, p, columns.count);
  } else {
    store_halves(v, p, p + columns.half_step, columns.count);
  }
}

template <typename T>
constexpr Storage kOwnStorage = sizeof(T) == 8 ? Storage::kFloat64 : Storage::kFloat32;

AFFNET_INLINE int64_t storage_bytes(Storage storage) {
  return storage == Storage::kFloat64 ? 8 : storage == Storage::kFloat32 ? 4 : 2;
}

// Prefetches ranges of bytes, a little at each step of a computation that itself leaves the memory idle.
class Prefetcher {
 public:
  void add(const void* data, int64_t bytes) {
    if (count_ == kMostRanges) return;
    ranges_[count_++] = {static_cast<const char*>(data), bytes < kMostBytes ? bytes : kMostBytes};
    bytes_ += ranges_[count_ - 1].bytes;
  }
  void divide(int64_t steps) { per_step_ = bytes_ / steps + kLine; }
  AFFNET_INLINE void advance() {
    for (int64_t left = per_step_; left > 0 && range_ < count_; left -= kLine) {
      __builtin_prefetch(ranges_[range_].data + position_, 0, 2);
      position_ += kLine;
      if (position_ >= ranges_[range_].bytes) ++range_, position_ = 0;
    }
  }

 private:
  static constexpr int kMostRanges = 3 << kMaxImagesLog2, kLine = 64;
  static constexpr int64_t kMostBytes = 128 << 10;  // of a range; more would evict what the computation works on
  struct Range {
    const char* data;
    int64_t bytes;
  };
  Range ranges_[kMostRanges];
  int count_ = 0, range_ = 0;
  int64_t bytes_ = 0, per_step_ = 0, position_ = 0;
};

// The columns of the planes in place, if whole vectors of them can be loaded. Null if not: the planes must be staged.
template <typename T, typename G, typename Pointee>
Columns<T> direct_columns(const Geometry<G>& g, const Planes<Pointee>& planes) {
  constexpr int kLanes = Vec<G>::kLanes;
  T* const data = static_cast<T*>(planes.data);
  const ptrdiff_t half = planes.image_stride * (g.images / 2);
  if (planes.storage == kOwnStorage<G>) {
    if (g.runs) return {nullptr, nullptr, 0, 0, 0, 0, Access::kWhole};
    if (g.images == 1 && g.width % 2 == 0) {
      return {data, data + g.pairs, g.width, 0, 0, g.pairs, g.pairs < kLanes ? Access::kFirst : Access::kWhole};
    }
    if (g.images == 2 && g.width >= kLanes) return {data, data + half, g.width, 0, 0, kLanes, Access::kWhole};
    if (g.images >= 2 && g.pitch == kLanes) {
      return {data, data + half, g.width, planes.image_stride, 0, g.width, Access::kFirst};
    }
    if (kHasHalves && g.images >= 4 && g.pitch == kLanes / 2) {
      return {data, data + half, g.width, 2 * planes.image_stride, planes.image_stride, g.width, Access::kHalves};
    }
  }
  return {nullptr, nullptr, 0, 0, 0, 0, Access::kWhole};
}

template <typename T, typename G>
Columns<T> staged_columns(const Geometry<G>& g, T* staging) {
  return {staging, staging + g.pairs, g.staging_stride, 0, 0, Vec<G>::kLanes, Access::kWhole};
}

// Calls f with a null pointer of the type that the tensor's elements have.
template <typename T, typename F>
AFFNET_INLINE void with_storage(Storage storage, F&& f) {
  if constexpr (sizeof(T) == 4) {
    if (storage == Storage::kFloat16) return f(static_cast<Float16*>(nullptr));
    if (storage == Storage::kBFloat16) return f(static_cast<BFloat16*>(nullptr));
  }
  f(static_cast<T*>(nullptr));
}

// Calls f(offset in staging memory, offset in the tensor, count) for every vector of every row, the last one of a row
// perhaps not full.
template <typename T, typename F>
AFFNET_INLINE void each_vector_of_rows(const Geometry<T>& g, int64_t image_stride, F&& f) {
  constexpr int kLanes = Vec<T>::kLanes;
  const int64_t channel_stride = static_cast<int64_t>(g.height) * g.width;
  for (int h = 0; h < g.height; ++h) {
    ptrdiff_t to = static_cast<ptrdiff_t>(h) * g.staging_stride;
    for (int image = 0; image < g.images; ++image) {
      int64_t from = image * image_stride + static_cast<int64_t>(h) * g.width;
      for (int channel = 0; channel < g.channels; ++channel, to += g.pitch, from += channel_stride) {
        int w = 0;
        for (; w + kLanes <= g.width; w += kLanes) f(to + w, from + w, kLanes);
        if (w < g.width) f(to + w, from + w, g.width - w);
      }
    }
  }
}

// Copies the planes to staging memory, where their columns lie side by side in each row.
template <typename T>
void stage(const Geometry<T>& g, const Planes<const void>& x, T* staging) {
  with_storage<T>(x.storage, [&](auto* element) AFFNET_LAMBDA {
    const auto* const data = static_cast<const std::remove_pointer_t<decltype(element)>*>(x.data);
    each_vector_of_rows(g, x.image_stride, [&](ptrdiff_t to, int64_t from, int count) AFFNET_LAMBDA {
      store_first(load_as<T>(data + from, count), staging + to, count);
    });
  });
  const int columns = g.planes() * g.pitch;  // of an odd number the last is paired with zeros
  for (int h = 0; columns % 2 != 0 && h < g.height; ++h) {
    staging[static_cast<ptrdiff_t>(h) * g.staging_stride + columns] = 0;
  }
}

// out = x + scale * staging, rounded once.
template <typename T>
void store_staged(const Geometry<T>& g, const T* staging, const Planes<const void>& x, const Planes<void>& out, T scale,
                  Vec<T>& finite) {
  with_storage<T>(x.storage, [&](auto* element) AFFNET_LAMBDA {
    const auto* const addend = static_cast<const std::remove_pointer_t<decltype(element)>*>(x.data);
    auto* const y = static_cast<decltype(element)>(out.data);
    Vec<T> all_finite = finite;
    each_vector_of_rows(g, x.image_stride, [&](ptrdiff_t from, int64_t to, int count) AFFNET_LAMBDA {
      const Vec<T> sum = load_as<T>(addend + to, count) + load_first(staging + from, count) * scale;
      all_finite += sum * T(0);
      store_as(sum, y + to, count);
    });
    finite = all_finite;
  });
}

}  // namespace affnet::AFFNET_CAPABILITY
