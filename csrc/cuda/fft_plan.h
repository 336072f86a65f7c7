// cuFFT plans: made once for a size, run on any stream and in memory that the caller provides.
#pragma once

#include <c10/util/Exception.h>
#include <cufft.h>
#include <cufftXt.h>

#include <array>
#include <compare>
#include <memory>
#include <mutex>

#include "plan_cache.h"

namespace affnet {

inline void check_cufft(cufftResult result, const char* what) {
  TORCH_CHECK(result == CUFFT_SUCCESS, "affnet_kernels: expected cuFFT to ", what, ", got its error ",
              static_cast<int>(result));
}

// kColumn transforms planes of width 1: complex along H in either direction, with no rows to transform.
enum class Transform { kRealToComplex, kComplexToReal, kColumn };

struct PlanKey {
  Transform transform;
  bool wide;  // float64
  long long H, W, planes;

  auto operator<=>(const PlanKey&) const = default;
};

// A batch of unnormalised transforms of contiguous planes [H, W], real, or [H, W / 2 + 1], complex.
class FftPlan {
 public:
  explicit FftPlan(const PlanKey& key) {
    const cudaDataType real = key.wide ? CUDA_R_64F : CUDA_R_32F, complex = key.wide ? CUDA_C_64F : CUDA_C_32F;
    const cudaDataType in = key.transform == Transform::kRealToComplex ? real : complex;
    const cudaDataType out = key.transform == Transform::kComplexToReal ? real : complex;
    // A plane of one row or one column is transformed along one axis, so cuFFT never sees a length of 1.
    std::array<long long, 2> lengths{key.H, key.W};
    long long* n = lengths.data();
    int rank = 2;
    if (key.H == 1) {
      ++n;
      rank = 1;
    } else if (key.transform == Transform::kColumn) {
      rank = 1;
    }
    check_cufft(cufftCreate(&handle_), "create a plan");
    const cufftResult made = [&] {
      cufftResult result = cufftSetAutoAllocation(handle_, 0);
      if (result != CUFFT_SUCCESS) return result;
      // No embeddings: planes are contiguous.
      return cufftXtMakePlanMany(handle_, rank, n, nullptr, 1, 0, in, nullptr, 1, 0, out, key.planes, &work_bytes_,
                                 complex);
    }();
    if (made != CUFFT_SUCCESS) cufftDestroy(handle_);
    check_cufft(made, "plan this size");
  }

  FftPlan(const FftPlan&) = delete;
  FftPlan& operator=(const FftPlan&) = delete;
  ~FftPlan() { cufftDestroy(handle_); }

  size_t work_bytes() const { return work_bytes_; }

  // `direction` matters for kColumn only. A plan has one stream and one work area at a time, hence the lock.
  void run(void* in, void* out, void* work, int direction, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    check_cufft(cufftSetStream(handle_, stream), "take a stream");
    check_cufft(cufftSetWorkArea(handle_, work), "take a work area");
    check_cufft(cufftXtExec(handle_, in, out, direction), "run a plan");
  }

 private:
  std::mutex mutex_;
  cufftHandle handle_{};
  size_t work_bytes_ = 0;
};

using FftPlanCache = PlanCache<PlanKey, FftPlan>;

}  // namespace affnet
