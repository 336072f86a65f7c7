// The operators on the CPU: checks, the choice of the kernel's variant, tiles in parallel.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "capability.h"
#include "checks.h"
#include "kernel.h"
#include "plan.h"

namespace affnet {

// PyTorch's own choice of instruction set, so that ATEN_CPU_CAPABILITY holds for this kernel too.
const Kernels& selected_kernels() {
#ifdef AFFNET_X86_VARIANTS
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return avx512::kKernels;
  if (capability == "AVX2") return avx2::kKernels;
#endif
  return baseline::kKernels;
}

const char* cpu_capability() { return selected_kernels().name; }

namespace {

// Memory that a thread keeps between calls: fresh pages cost more than a small tile.
char* thread_scratch(size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlignment); }
  };
  static thread_local std::unique_ptr<char, Free> memory;
  static thread_local size_t held = 0;
  if (held < bytes) {
    memory.reset();
    held = 0;
    memory.reset(static_cast<char*>(::operator new(bytes, kAlignment)));
    std::memset(memory.get(), 0, bytes);
    held = bytes;
  }
  return memory.get();
}

template <typename T>
const Kernel<T>& kernel() {
  if constexpr (std::is_same_v<T, double>) {
    return selected_kernels().float64;
  } else {
    return selected_kernels().float32;
  }
}

Storage storage_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return Storage::kFloat64;
    case at::kFloat:
      return Storage::kFloat32;
    case at::kHalf:
      return Storage::kFloat16;
    case at::kBFloat16:
      return Storage::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "affnet_kernels: expected x of float64, float32, float16 or bfloat16, got ", type);
  }
}

// A call and everything its pointers point to.
template <typename T>
struct Prepared {
  Call<T> call{};
  at::Tensor x, w1, b1, w2, b2;
  std::array<std::shared_ptr<const Geometry<T>>, kMaxImagesLog2 + 1> geometry;

  Prepared(const Sizes& n, const at::Tensor& x_, const at::Tensor& w1_, const at::Tensor& b1_, const at::Tensor& w2_,
           const at::Tensor& b2_, double sparsity_threshold, Activation activation)
      : x(x_.contiguous()), w1(w1_.contiguous()), b1(b1_.contiguous()), w2(w2_.contiguous()), b2(b2_.contiguous()) {
    call.x = x.const_data_ptr();
    call.storage = storage_of(x.scalar_type());
    call.w1 = w1.const_data_ptr<T>(), call.b1 = b1.const_data_ptr<T>();
    call.w2 = w2.const_data_ptr<T>(), call.b2 = b2.const_data_ptr<T>();
    call.batch = n.B, call.height = n.H, call.width = n.W;
    call.blocks = static_cast<int>(n.K), call.size = static_cast<int>(n.D), call.hidden = static_cast<int>(n.Dh);
    call.threshold = static_cast<T>(sparsity_threshold);
    call.activation = activation;
    const int lanes = kernel<T>().lanes;
    call.images_log2 = choose_images_log2(n.B, n.H, n.W, n.D, lanes, sizeof(T));
    for (int i = 0; i <= call.images_log2; ++i) {
      geometry[i] = geometry_of<T>(n.H, n.W, 1 << i, lanes);
      call.geometry[i] = geometry[i].get();
    }
  }
};

// A task of fewer elements than this is not worth a thread of its own.
constexpr int64_t kGrainElements = 1 << 14;

template <typename T>
at::Tensor run_forward(const Sizes& n, Prepared<T>& prepared) {
  at::Tensor y = at::empty_like(prepared.x);  // contiguous, as x by now is
  Call<T>& call = prepared.call;
  call.out = y.data_ptr();
  const size_t bytes = kernel<T>().scratch_bytes(call, false);
  const int64_t tiles = n.K * call.groups(), tile_elements = y.numel() / tiles;
  at::parallel_for(0, tiles, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, tile_elements)),
                   [&](int64_t begin, int64_t end) { kernel<T>().forward(call, begin, end, thread_scratch(bytes)); });
  return y;
}

// The gradients of a block's parameters are summed over a fixed number of runs of images, each on its own, and those in
// order: the sums do not depend on the number of threads.
constexpr int64_t kMostRuns = 16;

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> run_backward(const Sizes& n,
                                                                                    Prepared<T>& prepared,
                                                                                    const at::Tensor& dy) {
  Call<T>& call = prepared.call;
  call.dy = dy.const_data_ptr();
  at::Tensor dx = call.input_grad ? at::empty_like(prepared.x) : at::empty({0}, prepared.x.options());
  call.out = call.input_grad ? dx.data_ptr() : nullptr;
  const int64_t groups = call.groups(), runs = std::min(groups, kMostRuns);
  const int64_t partial_size = call.partial_size();
  const at::Tensor partials = at::empty({call.parameter_grads ? n.K * runs : 0, partial_size}, prepared.w1.options());
  T* const partial = partials.data_ptr<T>();
  const size_t bytes = kernel<T>().scratch_bytes(call, true);
  const int64_t task_elements = prepared.x.numel() / (n.K * runs);
  at::parallel_for(0, n.K * runs, std::max<int64_t>(1, kGrainElements / 2 / std::max<int64_t>(1, task_elements)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t run = task % runs;
                       kernel<T>().backward(call, static_cast<int>(task / runs), run * groups / runs,
                                            (run + 1) * groups / runs, partial + task * partial_size,
                                            thread_scratch(bytes));
                     }
                   });

  std::array<at::Tensor, 4> gradients;
  const std::array<const at::Tensor*, 4> parameters{&prepared.w1, &prepared.b1, &prepared.w2, &prepared.b2};
  int64_t offset = 0;
  for (size_t p = 0; p < 4; ++p) {
    if (!call.parameter_grads) {
      gradients[p] = at::empty({0}, prepared.w1.options());
      continue;
    }
    gradients[p] = at::empty_like(*parameters[p]);
    T* const gradient = gradients[p].template data_ptr<T>();
    const int64_t count = gradients[p].numel() / n.K / 2;  // of one block, real or imaginary
    for (int64_t part = 0; part < 2; ++part) {
      for (int64_t k = 0; k < n.K; ++k) {
        T* const to = gradient + (part * n.K + k) * count;
        const T* from = partial + k * runs * partial_size + offset;
        std::copy_n(from, count, to);
        for (int64_t run = 1; run < runs; ++run) {
          from += partial_size;
          for (int64_t i = 0; i < count; ++i) to[i] += from[i];
        }
      }
      offset += count;
    }
  }
  return {dx, gradients[0], gradients[1], gradients[2], gradients[3]};
}

at::Tensor forward(const at::Tensor& x,   // [B, C, H, W]
                   const at::Tensor& w1,  // [2, K, D, Dh]
                   const at::Tensor& b1,  // [2, K, Dh]
                   const at::Tensor& w2,  // [2, K, Dh, D]
                   const at::Tensor& b2,  // [2, K, D]
                   double sparsity_threshold, c10::string_view activation) {
  const char* const name = "native_forward";
  const Sizes n = check_sizes(name, x, w1, b1, w2, b2);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Prepared<T> prepared(n, x, w1, b1, w2, b2, sparsity_threshold, activation_named(name, activation));
    return run_forward(n, prepared);
  };
  return x.scalar_type() == at::kDouble ? run(double{}) : run(float{});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dy,  // [B, C, H, W]
                                                                                const at::Tensor& x,   // [B, C, H, W]
                                                                                const at::Tensor& w1,  // [2, K, D, Dh]
                                                                                const at::Tensor& b1,  // [2, K, Dh]
                                                                                const at::Tensor& w2,  // [2, K, Dh, D]
                                                                                const at::Tensor& b2,  // [2, K, D]
                                                                                double sparsity_threshold,
                                                                                c10::string_view activation,
                                                                                bool input_grad, bool parameter_grads) {
  const char* const name = "native_backward";
  const Sizes n = check_sizes(name, x, w1, b1, w2, b2);
  check_dy(name, dy, x);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Prepared<T> prepared(n, x, w1, b1, w2, b2, sparsity_threshold, activation_named(name, activation));
    prepared.call.input_grad = input_grad;
    prepared.call.parameter_grads = parameter_grads;
    return run_backward(n, prepared, dy.contiguous());
  };
  return x.scalar_type() == at::kDouble ? run(double{}) : run(float{});
}

TORCH_LIBRARY_IMPL(affnet_kernels, CPU, m) {
  m.impl("native_forward", &forward);
  m.impl("native_backward", &backward);
}

}  // namespace
}  // namespace affnet
