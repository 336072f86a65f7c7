// The operators on the CPU: they check their arguments, choose the kernel for the instruction set, and compute the
// tiles in parallel.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <type_traits>

#include "capability.h"
#include "checks.h"
#include "fft/layout.h"
#include "kernel.h"

namespace affnet {

// Follows PyTorch's choice of instruction set, and with it ATEN_CPU_CAPABILITY.
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

// Scratch memory of the current thread. Small amounts are kept between calls, because fresh pages cost more than a
// small tile takes; large ones are freed, because there fresh pages cost about a hundredth of the call.
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
    if (held_ > kMaxKept) release();
  }
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;

  char* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kMaxKept = size_t{16} << 20;
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

// A call, and the owners of everything that it points to.
template <typename T>
struct Prepared {
  Call<T> call{};
  at::Tensor x;
  Parameters parameters;
  std::shared_ptr<const TileLayout<T>> layout;

  Prepared(const Sizes& n, const at::Tensor& x_, const Parameters& parameters_, double sparsity_threshold,
           Activation activation)
      : x(x_.contiguous(memory_format_of(x_))), parameters(parameters_.contiguous()) {
    call.x = x.const_data_ptr();
    call.storage = storage_of(x.scalar_type());
    call.channels_last = memory_format() == at::MemoryFormat::ChannelsLast;
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

  at::MemoryFormat memory_format() const { return memory_format_of(x); }
  at::Tensor output() const { return at::empty_like(x, x.options(), memory_format()); }
};

// The least number of elements that is worth a thread of its own.
constexpr int64_t kGrainElements = 1 << 14;

template <typename T>
at::Tensor run_forward(const Sizes& n, Prepared<T>& prepared) {
  at::Tensor y = prepared.output();
  Call<T>& call = prepared.call;
  call.out = y.data_ptr();
  const size_t bytes = kernel<T>().scratch_bytes(call, false);
  const int64_t tiles = n.K * call.tiles_per_block(), tile_elements = y.numel() / tiles;
  at::parallel_for(0, tiles, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, tile_elements)),
                   [&](int64_t begin, int64_t end) {
                     const ThreadScratch scratch(bytes);
                     kernel<T>().forward(call, begin, end, scratch.get());
                   });
  return y;
}

// The gradients of the parameters, each [2, K, ...], as partial sums over equal parts of the tiles of each block. How
// many there are does not depend on the number of threads, and they are added in order, so that the result does not
// either.
template <typename T>
class PartialSums {
 public:
  PartialSums(const Parameters& like, int64_t count) : count_(count) {
    const auto& [w1, b1, w2, b2] = like;
    gradients_ = {at::empty_like(w1), at::empty_like(b1), at::empty_like(w2), at::empty_like(b2)};
    for (const at::Tensor& gradient : gradients_) elements_ += gradient.numel();
    if (count > 1) others_ = at::empty({count - 1, elements_}, w1.options());
  }

  // Where partial sum `index` of block k is stored.
  ParameterGrads<T> of_block(int64_t index, int64_t k, int64_t blocks) const {
    std::array<T*, 8> parts;
    T* other = index == 0 ? nullptr : row(index);
    for (size_t i = 0; i < 4; ++i) {
      const int64_t elements = gradients_[i].numel();
      T* const gradient = index == 0 ? gradients_[i].template data_ptr<T>() : other;
      parts[2 * i] = gradient + k * elements / (2 * blocks);
      parts[2 * i + 1] = gradient + (blocks + k) * elements / (2 * blocks);
      other += elements;
    }
    return {{parts[0], parts[1]}, {parts[2], parts[3]}, {parts[4], parts[5]}, {parts[6], parts[7]}};
  }

  // dw1, db1, dw2, db2
  const std::array<at::Tensor, 4>& reduce() const {
    for (int64_t index = 1; index < count_; ++index) {
      const T* __restrict from = row(index);
      for (const at::Tensor& gradient : gradients_) {
        T* __restrict to = gradient.template data_ptr<T>();
        for (int64_t i = 0; i < gradient.numel(); ++i) to[i] += from[i];
        from += gradient.numel();
      }
    }
    return gradients_;
  }

 private:
  T* row(int64_t index) const { return others_.template data_ptr<T>() + (index - 1) * elements_; }

  std::array<at::Tensor, 4> gradients_;  // the first partial sum, later the total
  at::Tensor others_;                    // [count - 1, elements], the others: dw1, db1, dw2, db2 after one another
  int64_t count_, elements_ = 0;
};

// The tasks that a backward pass is divided into, about: one for each partial sum of each block.
constexpr int64_t kBackwardTasks = 16;

template <typename T>
Gradients run_backward(const Sizes& n, Prepared<T>& prepared, const at::Tensor& dy) {
  Call<T>& call = prepared.call;
  call.dy = dy.const_data_ptr();
  at::Tensor dx = call.input_grad ? prepared.output() : at::empty({0}, prepared.x.options());
  call.out = call.input_grad ? dx.data_ptr() : nullptr;
  const int64_t tiles = call.tiles_per_block();
  const int64_t count = std::min(tiles, std::max<int64_t>(1, kBackwardTasks / n.K));  // partial sums of each block
  std::optional<PartialSums<T>> sums;
  if (call.parameter_grads) sums.emplace(prepared.parameters, count);
  const size_t bytes = kernel<T>().scratch_bytes(call, true);
  const int64_t task_elements = prepared.x.numel() / (n.K * count);
  at::parallel_for(0, n.K * count, std::max<int64_t>(1, kGrainElements / 2 / std::max<int64_t>(1, task_elements)),
                   [&](int64_t begin, int64_t end) {
                     const ThreadScratch scratch(bytes);
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t k = task / count, index = task % count;
                       const auto grads = sums ? sums->of_block(index, k, n.K) : ParameterGrads<T>{};
                       const bool packed = task > begin && index > 0;
                       kernel<T>().backward(call, static_cast<int>(k), packed, index * tiles / count,
                                            (index + 1) * tiles / count, grads, scratch.get());
                     }
                   });
  if (!sums) {
    const at::Tensor none = at::empty({0}, prepared.parameters.w1.options());
    return {dx, none, none.clone(), none.clone(), none.clone()};
  }
  const auto& [dw1, db1, dw2, db2] = sums->reduce();
  return {dx, dw1, db1, dw2, db2};
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
    return run_backward(n, prepared, dy.contiguous(prepared.memory_format()));
  };
  return x.scalar_type() == at::kDouble ? run(double{}) : run(float{});
}

TORCH_LIBRARY_IMPL(affnet_kernels, CPU, m) {
  m.impl("native_forward", &forward);
  m.impl("native_backward", &backward);
}

}  // namespace
}  // namespace affnet
