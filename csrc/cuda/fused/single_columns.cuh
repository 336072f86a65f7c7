// Columns of a plane's two channels between a tensor of any type but float64 and float32 numbers in registers; what is
// stored is rounded once. The type is a launch's, not an instance's: all threads take the same branch, once a column,
// and nothing is compiled three times but these loads and stores.
#pragma once

#include "../spectral_map.cuh"
#include "element.h"

namespace affnet {

// The place of a column in a tensor.
struct Column {
  int64_t at;  // the first number of the first channel
  int stride;  // from one number to the next
  int second;  // from a number of the first channel to the second channel's, 0 if there is none
};

template <typename Stored, int N, typename ToFloat>
AFFNET_DEVICE void load_column(Complex<float> (&v)[N], const void* tensor, const Column& column, ToFloat to_float) {
  const Stored* const x = static_cast<const Stored*>(tensor) + column.at;
#pragma unroll
  for (int h = 0; h < N; ++h) {
    const Stored* const at = x + h * column.stride;
    v[h] = {to_float(global_load<Stored>(at)), to_float(global_load<Stored>(at + column.second))};
  }
}

// The first channel becomes the real part.
template <int N>
AFFNET_DEVICE void load_column(Complex<float> (&v)[N], Element element, const void* tensor, const Column& column) {
  switch (element) {
    case Element::kFloat16:  // rare: instructions are counted for float32
      return load_column<uint16_t>(v, tensor, column, [](uint32_t x) { return first_of<Half::kFloat16>(x); });
    case Element::kBfloat16:  // rare
      return load_column<uint16_t>(v, tensor, column, [](uint32_t x) { return first_of<Half::kBfloat16>(x); });
    default:
      return load_column<float>(v, tensor, column, [](float x) { return x; });
  }
}

template <Half kFormat, int N>
AFFNET_DEVICE void store_half_column(const Complex<float> (&v)[N], void* tensor, const Column& column) {
  uint16_t* const y = static_cast<uint16_t*>(tensor) + column.at;
#pragma unroll
  for (int h = 0; h < N; ++h) {
    const uint32_t pair = pack<kFormat>(v[h].im, v[h].re);
    global_store(y + h * column.stride, static_cast<uint16_t>(pair));
    if (column.second != 0) global_store(y + h * column.stride + column.second, static_cast<uint16_t>(pair >> 16));
  }
}

template <int N>
AFFNET_DEVICE void store_float_column(const Complex<float> (&v)[N], void* tensor, const Column& column) {
  float* const y = static_cast<float*>(tensor) + column.at;
#pragma unroll
  for (int h = 0; h < N; ++h) global_store(y + h * column.stride, v[h].im);
  if (column.second == 0) return;
#pragma unroll
  for (int h = 0; h < N; ++h) global_store(y + h * column.stride + column.second, v[h].re);
}

// The imaginary part becomes the first channel, as an inverse transform by `exchanged` leaves it.
template <int N>
AFFNET_DEVICE void store_column(const Complex<float> (&v)[N], Element element, void* tensor, const Column& column) {
  switch (element) {
    case Element::kFloat16:  // rare: instructions are counted for float32
      return store_half_column<Half::kFloat16>(v, tensor, column);
    case Element::kBfloat16:  // rare
      return store_half_column<Half::kBfloat16>(v, tensor, column);
    default:
      return store_float_column(v, tensor, column);
  }
}

}  // namespace affnet
