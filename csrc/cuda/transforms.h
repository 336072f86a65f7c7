// From real planes to their spectra and back, one chunk of block-images at a time.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <type_traits>

#include "checks.h"
#include "fft_plan.h"
#include "planes.cuh"
#include "spectral_map.cuh"

namespace affnet {

FftPlanCache& plan_cache(int device);

// The transforms of one call. S is the type of the tensors and T the one computed in. Spectra are unnormalised: the map
// applies the factors of both directions.
//
// The way back is one 2-D complex-to-real plan, because the map makes its input Hermitian (spectral_map.cuh).
template <typename S, typename T>
class Transforms {
 public:
  Transforms(const Sizes& n,
             int64_t chunk,  // block-images
             int device,
             bool inverse)  // whether the way back is needed
      : n_(n), chunk_(chunk), stream_(c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device))) {
    const bool capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
    const int64_t last = (n.B * n.K - 1) % chunk + 1;
    whole_ = plans_of(chunk, device, inverse, capturing);
    last_ = last == chunk ? whole_ : plans_of(last, device, inverse, capturing);
  }

  int64_t reals(int64_t block_images) const { return block_images * n_.D * n_.H * n_.W; }
  cudaStream_t stream() const { return stream_; }

  // Memory for a chunk: cuFFT's work area, and a copy of the planes if one of the tensors needs it.
  int64_t scratch_bytes(std::initializer_list<const S*> tensors) {
    work_bytes_ = std::max(whole_.work_bytes(), last_.work_bytes());
    work_bytes_ = (work_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
    const bool chunks_aligned =
        chunk_ >= n_.B * n_.K || reals(chunk_) * static_cast<int64_t>(sizeof(T)) % int64_t{sizeof(Complex<T>)} == 0;
    const bool staged = n_.W > 1 && !(chunks_aligned && std::all_of(tensors.begin(), tensors.end(), usable));
    return work_bytes_ + (staged ? reals(chunk_) * static_cast<int64_t>(sizeof(T)) : 0);
  }

  void set_scratch(char* scratch) {
    work_ = scratch;
    stage_ = reinterpret_cast<T*>(scratch + work_bytes_);
  }

  // Spectra of x [block_images, D, H, W]. Planes of width 1 are made complex and transformed in place.
  void forward(const S* x, Complex<T>* X, int64_t block_images) {
    if (n_.W == 1) {
      load(x, reinterpret_cast<T*>(X), reals(block_images), 2);
      if (n_.H > 1) run(plans(block_images).forward, X, X, CUFFT_FORWARD);
    } else if (usable(x)) {
      run(plans(block_images).forward, const_cast<S*>(x), X, CUFFT_FORWARD);
    } else {
      load(x, stage_, reals(block_images), 1);
      run(plans(block_images).forward, stage_, X, CUFFT_FORWARD);
    }
  }

  // y := inverse(Y) + x, rounded once. Y is overwritten.
  void inverse(Complex<T>* Y, const S* x, S* y, int64_t block_images) {
    if (n_.W == 1) {
      if (n_.H > 1) run(plans(block_images).inverse, Y, Y, CUFFT_INVERSE);
      store(reinterpret_cast<T*>(Y), x, y, reals(block_images), 2);
    } else {
      T* const out = usable(y) ? reinterpret_cast<T*>(y) : stage_;
      run(plans(block_images).inverse, Y, out, CUFFT_INVERSE);
      store(out, x, y, reals(block_images), 1);
    }
  }

 private:
  static constexpr int64_t kAlignment = 256;

  struct Plans {
    std::shared_ptr<FftPlan> forward, inverse;  // null if there is nothing to transform

    int64_t work_bytes() const {
      size_t bytes = 0;
      for (const auto* plan : {forward.get(), inverse.get()}) {
        if (plan != nullptr) bytes = std::max(bytes, plan->work_bytes());
      }
      return static_cast<int64_t>(bytes);
    }
  };

  Plans plans_of(int64_t block_images, int device, bool inverse, bool capturing) const {
    const auto plan = [&](Transform transform) {
      const PlanKey key{transform, std::is_same_v<T, double>, n_.H, n_.W, block_images * n_.D};
      const auto make = [&](const PlanKey& k) {
        TORCH_CHECK(!capturing,
                    "affnet_kernels: expected a call of this size before the CUDA graph is captured, got none "
                    "that the plan cache still holds; warm up with one call, or enlarge the cache");
        return std::make_shared<FftPlan>(k);
      };
      return plan_cache(device).get(key, make, capturing);
    };
    if (n_.H == 1 && n_.W == 1) return {};
    if (n_.W == 1) {
      const auto column = plan(Transform::kColumn);
      return {column, column};
    }
    return {plan(Transform::kRealToComplex), inverse ? plan(Transform::kComplexToReal) : nullptr};
  }

  // A chunk that is not whole is the last one.
  const Plans& plans(int64_t block_images) const { return block_images == chunk_ ? whole_ : last_; }

  // cuFFT takes a tensor as it is if it has the type computed in and is aligned to complex numbers.
  static bool usable(const S* planes) {
    return std::is_same_v<S, T> && reinterpret_cast<uintptr_t>(planes) % sizeof(Complex<T>) == 0;
  }

  void run(const std::shared_ptr<FftPlan>& plan, void* in, void* out, int direction) {
    plan->run(in, out, work_, direction, stream_);
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
  int64_t chunk_;
  cudaStream_t stream_;
  Plans whole_, last_;
  int64_t work_bytes_ = 0;
  void* work_ = nullptr;
  T* stage_ = nullptr;
};

}  // namespace affnet
