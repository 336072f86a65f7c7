// The elementwise steps between the tensors and cuFFT: the conversion on the way in; residual and conversion on the way
// out.
#pragma once

#include "device.h"

namespace affnet {

constexpr int kPlaneThreads = 256;

// to[i * stride] = x[i]; with stride 2 the numbers become complex, with imaginary part 0.
template <typename S, typename T>
AFFNET_KERNEL(kPlaneThreads)
load_kernel(const S* x, T* to, int64_t count, int stride) {
  for (int64_t i = cta_index() * thread_count() + thread_index(); i < count; i += cta_count() * thread_count()) {
    to[i * stride] = static_cast<T>(x[i]);
    if (stride == 2) to[2 * i + 1] = T(0);
  }
}

// y[i] = from[i * stride] + x[i], rounded once. y and `from` may be the same memory.
template <typename S, typename T>
AFFNET_KERNEL(kPlaneThreads)
store_kernel(const T* from, const S* x, S* y, int64_t count, int stride) {
  for (int64_t i = cta_index() * thread_count() + thread_index(); i < count; i += cta_count() * thread_count()) {
    y[i] = static_cast<S>(from[i * stride] + static_cast<T>(x[i]));
  }
}

}  // namespace affnet
