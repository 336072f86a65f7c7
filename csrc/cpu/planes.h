// The planes of one channel in a tile's images as memory holds them, and as columns the transforms can load.
#pragma once

#include "kernel.h"
#include "simd/vec.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename Pointee>
struct Planes {
  Pointee* data;         // the first image's plane, [height, width]
  int64_t image_stride;  // in elements
  Storage storage;
};

// How a vector of columns lies in memory: as it is; its first lanes only; its two halves in two images.
enum class Access { kWhole, kFirst, kHalves };

// The columns that are transformed together, the first of each pair and the second, row by row.
template <typename T>
struct Columns {
  T* first;
  T* second;
  ptrdiff_t stride;
  ptrdiff_t block_step;  // from one block of lanes to the next, unless kWhole
  ptrdiff_t half_step;   // kHalves: from one half to the other
  int count;             // lanes in use, of a vector or of a half
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

// Asks the memory for runs of bytes, a little at each step of a computation that needs few of them itself.
class Prefetcher {
 public:
  void add(const void* data, int64_t bytes) {
    if (count_ == kMostRuns) return;
    runs_[count_++] = {static_cast<const char*>(data), bytes < kMostBytes ? bytes : kMostBytes};
    bytes_ += runs_[count_ - 1].bytes;
  }
  void divide(int64_t steps) { share_ = bytes_ / steps + kLine; }
  AFFNET_INLINE void advance() {
    for (int64_t left = share_; left > 0 && run_ < count_; left -= kLine) {
      __builtin_prefetch(runs_[run_].data + position_, 0, 2);
      position_ += kLine;
      if (position_ >= runs_[run_].bytes) ++run_, position_ = 0;
    }
  }

 private:
  static constexpr int kMostRuns = 3 << kMaxImagesLog2, kLine = 64;
  static constexpr int64_t kMostBytes = 128 << 10;  // more would drive out what the computation works on
  struct Run {
    const char* data;
    int64_t bytes;
  };
  Run runs_[kMostRuns];
  int count_ = 0, run_ = 0;
  int64_t bytes_ = 0, share_ = 0, position_ = 0;
};

// The planes as they are, if vectors of columns can be loaded from them; else null: they go through staging memory.
template <typename T, typename G, typename Pointee>
Columns<T> direct_columns(const Geometry<G>& g, const Planes<Pointee>& planes) {
  constexpr int kLanes = Vec<G>::kLanes;
  T* const data = static_cast<T*>(planes.data);
  const ptrdiff_t half = planes.image_stride * (g.images / 2);
  if (planes.storage == kOwnStorage<G>) {
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

template <typename T>
Columns<T> staged_columns(const Geometry<T>& g, T* staging) {
  return {staging, staging + g.pairs, g.staging_stride, 0, 0, Vec<T>::kLanes, Access::kWhole};
}

// float16 and bfloat16 by integer arithmetic: no instruction beyond the baseline, and the compiler vectorises it.
AFFNET_INLINE float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
AFFNET_INLINE uint32_t to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

AFFNET_INLINE float from_bfloat16(uint16_t v) { return from_bits(uint32_t{v} << 16); }
AFFNET_INLINE uint16_t to_bfloat16(float v) {
  const uint32_t bits = to_bits(v);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(v != v ? 0x7fc0 : rounded);
}

AFFNET_INLINE float from_float16(uint16_t v) {
  const uint32_t sign = uint32_t{v & 0x8000u} << 16, rest = uint32_t{v & 0x7fffu} << 13;
  const float finite = from_bits(rest) * from_bits(0x77800000);  // 2^112: the difference of the exponents' biases
  const uint32_t bits = (v & 0x7c00) == 0x7c00 ? rest | 0x7f800000 : to_bits(finite);
  return from_bits(bits | sign);
}
AFFNET_INLINE uint16_t to_float16(float v) {
  const uint32_t sign = to_bits(v) & 0x80000000, size = to_bits(v) ^ sign;
  // Subnormal: adding 0.5 leaves the answer, rounded, in the last bits. Normal: round in the integer representation.
  const uint32_t subnormal = to_bits(from_bits(size) + 0.5f) - 0x3f000000;
  const uint32_t normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  const uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;
  const uint32_t half = size >= 0x47800000 ? large : size < 0x38800000 ? subnormal : normal;
  return static_cast<uint16_t>(half | (sign >> 16));
}

template <typename T>
void stage_row(T* to, const void* from, int64_t offset, int width, Storage storage) {
  if (storage == kOwnStorage<T>) {
    const T* const row = static_cast<const T*>(from) + offset;
    for (int w = 0; w < width; w += Vec<T>::kLanes) {
      const int count = width - w < Vec<T>::kLanes ? width - w : Vec<T>::kLanes;
      store_first(load_first(row + w, count), to + w, count);
    }
  } else if constexpr (sizeof(T) == 4) {
    const uint16_t* const row = static_cast<const uint16_t*>(from) + offset;
    if (storage == Storage::kBFloat16) {
      for (int w = 0; w < width; ++w) to[w] = from_bfloat16(row[w]);
    } else {
      for (int w = 0; w < width; ++w) to[w] = from_float16(row[w]);
    }
  }
}

// out = residual + staged, rounded once.
template <typename T>
void store_row(const T* staged, const void* residual, void* out, int64_t offset, int width, Storage storage,
               Vec<T>& finite) {
  if (storage == kOwnStorage<T>) {
    const T* const x = static_cast<const T*>(residual) + offset;
    T* const y = static_cast<T*>(out) + offset;
    for (int w = 0; w < width; w += Vec<T>::kLanes) {
      const int count = width - w < Vec<T>::kLanes ? width - w : Vec<T>::kLanes;
      const Vec<T> sum = load_first(x + w, count) + load_first(staged + w, count);
      finite += sum * T(0);
      store_first(sum, y + w, count);
    }
  } else if constexpr (sizeof(T) == 4) {
    const uint16_t* const x = static_cast<const uint16_t*>(residual) + offset;
    uint16_t* const y = static_cast<uint16_t*>(out) + offset;
    for (int w = 0; w < width; w += Vec<T>::kLanes) {
      const int count = width - w < Vec<T>::kLanes ? width - w : Vec<T>::kLanes;
      finite += load_first(staged + w, count) * T(0);
    }
    if (storage == Storage::kBFloat16) {
      for (int w = 0; w < width; ++w) y[w] = to_bfloat16(from_bfloat16(x[w]) + staged[w]);
    } else {
      for (int w = 0; w < width; ++w) y[w] = to_float16(from_float16(x[w]) + staged[w]);
    }
  }
}

template <typename T>
Columns<const T> staged(const Geometry<T>& g, const Planes<const void>& x, T* staging) {
  for (int h = 0; h < g.height; ++h) {
    T* const row = staging + static_cast<ptrdiff_t>(h) * g.staging_stride;
    for (int image = 0; image < g.images; ++image) {
      const int64_t offset = image * x.image_stride + static_cast<int64_t>(h) * g.width;
      stage_row(row + image * g.pitch, x.data, offset, g.width, x.storage);
    }
    if (g.images == 1 && g.width % 2 != 0) row[g.width] = 0;  // paired with the last column of the first half
  }
  const Columns<T> columns = staged_columns(g, staging);
  return {columns.first, columns.second, columns.stride, 0, 0, columns.count, columns.access};
}

template <typename T>
void store_staged(const Geometry<T>& g, const T* staging, const Planes<const void>& x, const Planes<void>& out,
                  Vec<T>& finite) {
  for (int h = 0; h < g.height; ++h) {
    const T* const row = staging + static_cast<ptrdiff_t>(h) * g.staging_stride;
    for (int image = 0; image < g.images; ++image) {
      const int64_t offset = image * x.image_stride + static_cast<int64_t>(h) * g.width;
      store_row(row + image * g.pitch, x.data, out.data, offset, g.width, x.storage, finite);
    }
  }
}

}  // namespace affnet::AFFNET_CAPABILITY
