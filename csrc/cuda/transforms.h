// From real planes to their spectra and back, for a run of block-images at a time.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "checks.h"
#include "fft_plan.h"
#include "planes.cuh"
#include "spectral_map.cuh"

namespace affnet {

FftPlanCache& plan_cache(int device);

// S is the tensors' type and T the one computed in. Spectra are unnormalised: the map applies both factors.
//
// The way back is one 2-D complex-to-real plan: the map has made its input Hermitian (spectral_map.cuh).
template <typename S, typename T>
class Transforms {
 public:
  Transforms(const Sizes& n, const at::Tensor& x)
      : n_(n),
        options_(x.options().dtype(at::kByte)),
        device_(x.get_device()),
        stream_(c10::cuda::getCurrentCUDAStream(device_)) {}

  int64_t reals(int64_t units) const { return units * n_.D * n_.H * n_.W; }
  int64_t numbers(int64_t units) const { return units * n_.D * n_.H * (n_.W / 2 + 1); }
  cudaStream_t stream() const { return stream_; }

  // Spectra of x [units, D, H, W]; with columns alone, real numbers are made complex, and transformed in place.
  void forward(const S* x, Complex<T>* X, int64_t units) {
    if (n_.W == 1) {
      load(x, reinterpret_cast<T*>(X), reals(units), 2);
      if (n_.H > 1) run(Transform::kColumn, X, X, units, CUFFT_FORWARD);
    } else if (direct(x)) {
      run(Transform::kRealToComplex, const_cast<S*>(x), X, units, CUFFT_FORWARD);
    } else {
      load(x, stage(units), reals(units), 1);
      run(Transform::kRealToComplex, stage(units), X, units, CUFFT_FORWARD);
    }
  }

  // y := inverse(Y) + x, rounded once. Y is used up.
  void inverse(Complex<T>* Y, const S* x, S* y, int64_t units) {
    if (n_.W == 1) {
      if (n_.H > 1) run(Transform::kColumn, Y, Y, units, CUFFT_INVERSE);
      store(reinterpret_cast<T*>(Y), x, y, reals(units), 2);
    } else {
      T* const out = direct(y) ? reinterpret_cast<T*>(y) : stage(units);
      run(Transform::kComplexToReal, Y, out, units, CUFFT_INVERSE);
      store(out, x, y, reals(units), 1);
    }
  }

 private:
  // cuFFT takes tensors as they are if their type is its own and they are aligned to complex numbers.
  static bool direct(const S* planes) {
    return std::is_same_v<S, T> && reinterpret_cast<uintptr_t>(planes) % sizeof(Complex<T>) == 0;
  }

  T* stage(int64_t units) {
    const int64_t bytes = reals(units) * static_cast<int64_t>(sizeof(T));
    if (!stage_.defined() || stage_.numel() < bytes) stage_ = at::empty({bytes}, options_);
    return static_cast<T*>(stage_.data_ptr());
  }

  void run(Transform transform, void* in, void* out, int64_t units, int direction) {
    const PlanKey key{transform, std::is_same_v<T, double>, n_.H, n_.W, units * n_.D};
    const bool capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
    const auto plan = plan_cache(device_).get(key, capturing, [&](const PlanKey& k) {
      TORCH_CHECK(!capturing,
                  "affnet_kernels: expected a call of this size before the CUDA graph is captured, got none "
                  "that the plan cache still holds; warm up with one call, or enlarge the cache");
      return std::make_shared<FftPlan>(k);
    });
    // The allocator may hand the memory out again at once: to work that comes later on this stream.
    const at::Tensor work = at::empty({static_cast<int64_t>(plan->work_bytes())}, options_);
    plan->run(in, out, work.data_ptr(), direction, stream_);
  }

  static unsigned ctas(int64_t count) {
    constexpr int64_t kMost = 1 << 20;
    return static_cast<unsigned>(std::min(kMost, (count + kPlaneThreads - 1) / kPlaneThreads));
  }

  void load(const S* x, T* to, int64_t count, int stride) {
    load_kernel<S, T><<<ctas(count), kPlaneThreads, 0, stream_>>>(x, to, count, stride);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  void store(const T* from, const S* x, S* y, int64_t count, int stride) {
    store_kernel<S, T><<<ctas(count), kPlaneThreads, 0, stream_>>>(from, x, y, count, stride);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  Sizes n_;
  at::TensorOptions options_;
  int device_;
  cudaStream_t stream_;
  at::Tensor stage_;
};

}  // namespace affnet
