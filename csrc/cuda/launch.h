// Launches a kernel with the shared memory it asks for.
#pragma once

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>

#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

namespace affnet {

// A kernel may use more than 48 KiB of shared memory only if its attribute says so. It is set once per kernel and
// device, because setting it takes as long as a launch.
inline void allow_shared_memory(const void* kernel, int bytes) {
  constexpr int kAlwaysAllowed = 48 * 1024;
  if (bytes <= kAlwaysAllowed) return;
  static auto* const mutex = new std::mutex;
  static auto* const allowed = new std::map<std::pair<const void*, int>, int>;
  const std::lock_guard lock(*mutex);
  int& found = (*allowed)[{kernel, c10::cuda::current_device()}];
  if (found >= bytes) return;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  found = bytes;
}

template <typename... Args>
void launch(void (*kernel)(Args...), int64_t ctas, int threads, int shared_bytes, cudaStream_t stream,
            const std::type_identity_t<Args>&... args) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  kernel<<<static_cast<unsigned>(ctas), threads, shared_bytes, stream>>>(args...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace affnet
