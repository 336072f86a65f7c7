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
#include <type_traits>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "fft/layout.h"
#include "kernel.h"

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

// Memory that a thread works in. It keeps some between calls, for fresh pages cost more than a small tile; what a huge
// tile takes is given back, for there fresh pages cost a hundredth of the call.
class ThreadScratch {
 public:
  explicit ThreadScratch(size_t bytes) {
    if (held_ >= bytes) return;
    release();
    memory_.reset(static_cast<char*>(::operator new(bytes, kAlignment)));
    std::memset(memory_.get(), 0, bytes);
    held_ = bytes;
  }
  ~ThreadScratch() {
    if (held_ > kMostKept) release();
  }
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;

  char* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kMostKept = size_t{16} << 20;
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlignment); }
  };

  static void release() {
    memory_.reset();
    held_ = 0;
  }

  static thread_local std::unique_ptr<char, Free> memory_;
  static thread_local size_t held_;
};

thread_local std::unique_ptr<char, ThreadScratch::Free> ThreadScratch::memory_;
thread_local size_t ThreadScratch::held_ = 0;

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
  at::Tensor x;
  Parameters parameters;
  std::shared_ptr<const TileLayout<T>> layout;

  Prepared(const Sizes& n, const at::Tensor& x_, const Parameters& parameters_, double sparsity_threshold,
           Activation activation)
      : x(x_.contiguous()), parameters(parameters_.contiguous()) {
    call.x = x.const_data_ptr();
    call.storage = storage_of(x.scalar_type());
    const auto& [w1, b1, w2, b2] = parameters;
    call.w1 = w1.template const_data_ptr<T>(), call.b1 = b1.template const_data_ptr<T>();
    call.w2 = w2.template const_data_ptr<T>(), call.b2 = b2.template const_data_ptr<T>();
    call.batch = n.B, call.height = n.H, call.width = n.W;
    call.blocks = static_cast<int>(n.K), call.size = static_cast<int>(n.D), call.hidden = static_cast<int>(n.Dh);
    call.threshold = static_cast<T>(sparsity_threshold);
    call.activation = activation;
    layout = tile_layout<T>(n.B, n.H, n.W, n.D, kernel<T>().lanes);
    call.images_log2 = layout->images_log2;
    std::copy(std::begin(layout->geometry), std::end(layout->geometry), call.geometry);
    call.alone = layout->alone;
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
                   [&](int64_t begin, int64_t end) {
                     const ThreadScratch scratch(bytes);
                     kernel<T>().forward(call, begin, end, scratch.get());
                   });
  return y;
}

// The gradients of a block's parameters are summed over a fixed number of runs of images, each on its own, and those in
// order: the sums do not depend on the number of threads. So many runs that this many tasks are there.
constexpr int64_t kTasks = 16;

// The parameters' gradients, each [2, K, ...]; the sums of one run of images.
struct Sums {
  std::array<at::Tensor, 4> tensors;

  template <typename T>
  explicit Sums(const Prepared<T>& prepared)
      : tensors{at::empty_like(prepared.parameters.w1), at::empty_like(prepared.parameters.b1),
                at::empty_like(prepared.parameters.w2), at::empty_like(prepared.parameters.b2)} {}

  template <typename T>
  ParameterGrads<T> of_block(int64_t k, int64_t blocks) const {
    const auto part = [&](size_t i, int64_t re_or_im) {
      return tensors[i].data_ptr<T>() + (re_or_im * blocks + k) * (tensors[i].numel() / (2 * blocks));
    };
    return {{part(0, 0), part(0, 1)}, {part(1, 0), part(1, 1)}, {part(2, 0), part(2, 1)}, {part(3, 0), part(3, 1)}};
  }
};

template <typename T>
Gradients run_backward(const Sizes& n, Prepared<T>& prepared, const at::Tensor& dy) {
  Call<T>& call = prepared.call;
  call.dy = dy.const_data_ptr();
  at::Tensor dx = call.input_grad ? at::empty_like(prepared.x) : at::empty({0}, prepared.x.options());
  call.out = call.input_grad ? dx.data_ptr() : nullptr;
  const int64_t groups = call.groups(), runs = std::min(groups, std::max<int64_t>(1, kTasks / n.K));
  std::vector<Sums> sums;
  for (int64_t run = 0; call.parameter_grads && run < runs; ++run) sums.emplace_back(prepared);
  const size_t bytes = kernel<T>().scratch_bytes(call, true);
  const int64_t task_elements = prepared.x.numel() / (n.K * runs);
  at::parallel_for(0, n.K * runs, std::max<int64_t>(1, kGrainElements / 2 / std::max<int64_t>(1, task_elements)),
                   [&](int64_t begin, int64_t end) {
                     const ThreadScratch scratch(bytes);
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t k = task / runs, run = task % runs;
                       const auto to = sums.empty() ? ParameterGrads<T>{} : sums[run].template of_block<T>(k, n.K);
                       kernel<T>().backward(call, static_cast<int>(k), run * groups / runs, (run + 1) * groups / runs,
                                            to, scratch.get());
                     }
                   });
  if (sums.empty()) {
    const at::Tensor none = at::empty({0}, prepared.parameters.w1.options());
    return {dx, none, none.clone(), none.clone(), none.clone()};
  }
  for (size_t i = 0; i < 4; ++i) {
    T* const to = sums[0].tensors[i].template data_ptr<T>();
    for (int64_t run = 1; run < runs; ++run) {
      const T* const from = sums[run].tensors[i].template const_data_ptr<T>();
      for (int64_t j = 0; j < sums[0].tensors[i].numel(); ++j) to[j] += from[j];
    }
  }
  return {dx, sums[0].tensors[0], sums[0].tensors[1], sums[0].tensors[2], sums[0].tensors[3]};
}

at::Tensor forward(const at::Tensor& x,   // [B, C, H, W]
                   const at::Tensor& w1,  // [2, K, D, Dh]
                   const at::Tensor& b1,  // [2, K, Dh]
                   const at::Tensor& w2,  // [2, K, Dh, D]
                   const at::Tensor& b2,  // [2, K, D]
                   double sparsity_threshold, c10::string_view activation) {
  const char* const name = "native_forward";
  const Parameters parameters{w1, b1, w2, b2};
  const Sizes n = check_sizes(name, x, parameters);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Prepared<T> prepared(n, x, parameters, sparsity_threshold, activation_named(name, activation));
    return run_forward(n, prepared);
  };
  return x.scalar_type() == at::kDouble ? run(double{}) : run(float{});
}

Gradients backward(const at::Tensor& dy,  // [B, C, H, W]
                   const at::Tensor& x,   // [B, C, H, W]
                   const at::Tensor& w1,  // [2, K, D, Dh]
                   const at::Tensor& b1,  // [2, K, Dh]
                   const at::Tensor& w2,  // [2, K, Dh, D]
                   const at::Tensor& b2,  // [2, K, D]
                   double sparsity_threshold, c10::string_view activation, bool input_grad, bool parameter_grads) {
  const char* const name = "native_backward";
  const Parameters parameters{w1, b1, w2, b2};
  const Sizes n = check_sizes(name, x, parameters);
  check_dy(name, dy, x);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Prepared<T> prepared(n, x, parameters, sparsity_threshold, activation_named(name, activation));
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
