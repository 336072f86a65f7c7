// The operators on CUDA: in one launch where fused/path.h says so, else planned: cuFFT, one kernel for the spectral
// map, cuFFT, one chunk of block-images after another. Nothing here waits for the device. Once a call of the same sizes
// has made its cuFFT plans, the next can be captured in a graph.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "checks.h"
#include "controls.h"
#include "fused/one_launch.h"
#include "launch.h"
#include "launch_plan.h"
#include "spectral_map_mma.cuh"
#include "spectral_map_vjp.cuh"
#include "transforms.h"

namespace affnet {
namespace {

constexpr size_t kDefaultPlans = 128;  // per device; a call takes two, or four if its last chunk is smaller

// For the spectra of a chunk. Small enough that intermediate results may stay in the L2 cache of a large GPU, large
// enough that the time to launch kernels does not count: predicted, not measured.
std::atomic<int64_t> workspace_bytes{int64_t{32} << 20};

std::atomic<bool> tensor_cores_wanted{true};

bool may_use_tensor_cores(int device) {
  return tensor_cores_wanted && at::cuda::getDeviceProperties(device)->major >= 8;  // 8.0 brought TF32
}

// One allocation for all of a call's temporary arrays. It may be reused as soon as the call returns, but only for work
// that comes later on the same stream.
class Workspace {
 public:
  // Reserves room and returns its offset.
  int64_t reserve(int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    return std::exchange(bytes_, bytes_ + (bytes + kAlignment - 1) / kAlignment * kAlignment);
  }

  void allocate(const at::TensorOptions& options) { memory_ = at::empty({bytes_}, options.dtype(at::kByte)); }

  template <typename V>
  V* at(int64_t offset) const {
    return reinterpret_cast<V*>(static_cast<char*>(memory_.data_ptr()) + offset);
  }

 private:
  int64_t bytes_ = 0;
  at::Tensor memory_;
};

template <typename S>
CallFacts facts_of(const Sizes& n, int device, bool backward, bool parameter_grads) {
  const int real_bytes = std::is_same_v<S, double> ? 8 : 4;
  return {.B = n.B,
          .H = n.H,
          .W = n.W,
          .K = n.K,
          .D = n.D,
          .Dh = n.Dh,
          .workspace_bytes = workspace_bytes,
          .real_bytes = real_bytes,
          .converted = sizeof(S) != static_cast<size_t>(real_bytes),
          .backward = backward,
          .parameter_grads = parameter_grads,
          .tensor_cores = may_use_tensor_cores(device)};
}

// A call's tensors, contiguous, its plan, and the arguments that its chunks share. S is the type of x, T the one
// computed in.
template <typename S, typename T>
struct Call {
  Sizes n;
  CallFacts facts;
  LaunchPlan plan;
  at::Tensor x;  // [B, C, H, W]
  Parameters parameters;
  Transforms<S, T> transforms;
  MapArguments<T> map{};

  Call(const Sizes& n, const at::Tensor& x, const Parameters& parameters, double sparsity_threshold,
       Activation activation, const CallFacts& facts, bool inverse)
      : n(n),
        facts(facts),
        plan(plan_launch(facts)),
        x(x.contiguous()),
        parameters(parameters.contiguous()),
        transforms(n, plan.chunk, x.get_device(), inverse) {
    const auto& [w1, b1, w2, b2] = this->parameters;
    map.w1 = w1.template const_data_ptr<T>(), map.b1 = b1.template const_data_ptr<T>();
    map.w2 = w2.template const_data_ptr<T>(), map.b2 = b2.template const_data_ptr<T>();
    map.ctas_per_block = plan.ctas_per_block;
    map.K = static_cast<int>(n.K), map.D = static_cast<int>(n.D), map.Dh = static_cast<int>(n.Dh);
    map.H = static_cast<int>(n.H), map.W = static_cast<int>(n.W);
    map.scale = static_cast<T>(1 / std::sqrt(static_cast<double>(n.H) * static_cast<double>(n.W)));
    map.threshold = static_cast<T>(sparsity_threshold);
    map.activation = activation;
  }

  void launch_map() const {
    const int64_t ctas = plan.ctas(n.K, map.block_images);
    if (plan.quads == 0) {
      launch(fma_kernel<T>(plan, facts.backward), ctas, plan.threads, plan.shared_bytes, transforms.stream(), map);
    } else if constexpr (std::is_same_v<T, float>) {
      launch(mma_kernel(plan, facts.backward), ctas, plan.threads, plan.shared_bytes, transforms.stream(), map,
             RowTiling(map.H, map.W));
    }
  }

  // Calls body(block-images, offset of the first one in x) for every chunk.
  template <typename Body>
  void for_each_chunk(const Body& body) {
    const int64_t all = n.B * n.K;
    for (map.first = 0; map.first < all; map.first += plan.chunk) {
      map.block_images = std::min(plan.chunk, all - map.first);
      body(map.block_images, transforms.reals(map.first));
    }
  }
};

template <typename S, typename T>
at::Tensor run_forward(Call<S, T>& call) {
  at::Tensor y = at::empty_like(call.x);
  const S* const x = call.x.template const_data_ptr<S>();
  S* const out = y.template data_ptr<S>();
  auto& transforms = call.transforms;
  Workspace workspace;
  const int64_t X = workspace.reserve(spectrum_bytes(call.facts) * call.plan.chunk);
  const int64_t scratch = workspace.reserve(transforms.scratch_bytes({x, out}));
  workspace.allocate(call.x.options());
  call.map.X = workspace.at<Complex<T>>(X);
  transforms.set_scratch(workspace.at<char>(scratch));
  call.for_each_chunk([&](int64_t block_images, int64_t at) {
    transforms.forward(x + at, call.map.X, block_images);
    call.launch_map();
    transforms.inverse(call.map.X, x + at, out + at, block_images);
  });
  return y;
}

template <typename S, typename T>
Gradients run_backward(Call<S, T>& call, const at::Tensor& dy, bool input_grad) {
  const Sizes& n = call.n;
  const bool parameter_grads = call.facts.parameter_grads;
  at::Tensor dx = input_grad ? at::empty_like(call.x) : at::empty({0}, call.x.options());
  const S* const x = call.x.template const_data_ptr<S>();
  const S* const from = dy.const_data_ptr<S>();
  S* const out = input_grad ? dx.template data_ptr<S>() : nullptr;
  auto& transforms = call.transforms;
  auto& map = call.map;
  const int64_t partials_bytes =
      parameter_grads ? n.K * map.ctas_per_block * partial_size(map.D, map.Dh) * int64_t{sizeof(T)} : 0;
  Workspace workspace;
  const int64_t X = workspace.reserve(spectrum_bytes(call.facts) * call.plan.chunk);
  const int64_t G = workspace.reserve(spectrum_bytes(call.facts) * call.plan.chunk);
  const int64_t scratch = workspace.reserve(transforms.scratch_bytes({x, from, out}));
  const int64_t partials = workspace.reserve(partials_bytes);
  workspace.allocate(call.x.options());
  map.X = workspace.at<Complex<T>>(X);
  map.G = workspace.at<Complex<T>>(G);
  map.input_grad = input_grad;
  transforms.set_scratch(workspace.at<char>(scratch));
  if (parameter_grads) {
    map.partials = workspace.at<T>(partials);
    C10_CUDA_CHECK(cudaMemsetAsync(map.partials, 0, partials_bytes, transforms.stream()));
  }

  call.for_each_chunk([&](int64_t block_images, int64_t at) {
    transforms.forward(x + at, map.X, block_images);
    transforms.forward(from + at, map.G, block_images);
    call.launch_map();
    if (input_grad) transforms.inverse(map.G, from + at, out + at, block_images);
  });

  const auto gradient = [&](const at::Tensor& p) {
    return parameter_grads ? at::empty_like(p) : at::empty({0}, p.options());
  };
  const auto& [w1, b1, w2, b2] = call.parameters;
  at::Tensor dw1 = gradient(w1), db1 = gradient(b1), dw2 = gradient(w2), db2 = gradient(b2);
  if (parameter_grads) {
    const int64_t numbers = n.K * partial_size(map.D, map.Dh);
    launch(reduce_kernel<T>, (numbers + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0, transforms.stream(),
           map.partials, map.ctas_per_block, map.K, map.D, map.Dh, dw1.template data_ptr<T>(),
           db1.template data_ptr<T>(), dw2.template data_ptr<T>(), db2.template data_ptr<T>());
  }
  return {dx, dw1, db1, dw2, db2};
}

void check_limits(const char* function, const Sizes& n) {
  TORCH_CHECK_VALUE(std::max(n.D, n.Dh) <= kMaxChannels, function, ": expected up to ", kMaxChannels,
                    " channels and hidden channels per block, got ", n.D, " and ", n.Dh);
  TORCH_CHECK_VALUE(n.H * n.W <= kMaxPlane, function, ": expected up to ", kMaxPlane, " elements per plane, got ",
                    n.H * n.W);
}

// Calls body(S{}, T{}) with the type of x and the one computed in.
template <typename Body>
auto with_types(const char* function, at::ScalarType type, const Body& body) {
  switch (type) {
    case at::kDouble:
      return body(double{}, double{});
    case at::kFloat:
      return body(float{}, float{});
    case at::kHalf:
      return body(at::Half{}, float{});
    case at::kBFloat16:
      return body(at::BFloat16{}, float{});
    default:
      TORCH_CHECK_TYPE(false, function, ": expected x of float64, float32, float16 or bfloat16, got ", type);
  }
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
  check_limits(name, n);
  const Activation act = activation_named(name, activation);
  const c10::cuda::CUDAGuard guard(x.device());
  const Path path = path_of(n, x, false);
  if (path.one_launch()) return one_launch_forward(n, x, parameters, sparsity_threshold, act, path);
  return with_types(name, x.scalar_type(), [&](auto s, auto t) {
    const CallFacts facts = facts_of<decltype(s)>(n, x.get_device(), false, false);
    Call<decltype(s), decltype(t)> call(n, x, parameters, sparsity_threshold, act, facts, true);
    return run_forward(call).contiguous(memory_format_of(x));
  });
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
  check_limits(name, n);
  const Activation act = activation_named(name, activation);
  const c10::cuda::CUDAGuard guard(x.device());
  const Path path = path_of(n, x, true);
  if (path.one_launch()) {
    return one_launch_backward(n, dy, x, parameters, sparsity_threshold, act, input_grad, parameter_grads, path);
  }
  return with_types(name, x.scalar_type(), [&](auto s, auto t) {
    const CallFacts facts = facts_of<decltype(s)>(n, x.get_device(), true, parameter_grads);
    Call<decltype(s), decltype(t)> call(n, x, parameters, sparsity_threshold, act, facts, input_grad);
    Gradients gradients = run_backward(call, dy.contiguous(), input_grad);
    at::Tensor& dx = std::get<0>(gradients);
    if (input_grad) dx = dx.contiguous(memory_format_of(x));
    return gradients;
  });
}

}  // namespace

// Never destroyed: at exit the driver may be gone before the plans.
FftPlanCache& plan_cache(int device) {
  static auto* const mutex = new std::mutex;
  static auto* const caches = new std::map<int, std::unique_ptr<FftPlanCache>>;
  const std::lock_guard lock(*mutex);
  std::unique_ptr<FftPlanCache>& cache = (*caches)[device];
  if (!cache) cache = std::make_unique<FftPlanCache>(kDefaultPlans);
  return *cache;
}

int cufft_version() {
  int version = 0;
  check_cufft(cufftGetVersion(&version), "report its version");
  return version;
}

PlanCacheInfo plan_cache_info(int device) { return plan_cache(device).info(); }

void set_plan_cache_capacity(int device, int64_t plans) {
  TORCH_CHECK_VALUE(plans >= 0, "set_plan_cache_capacity: expected plans >= 0, got ", plans);
  const c10::cuda::OptionalCUDAGuard guard(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
  plan_cache(device).set_capacity(static_cast<size_t>(plans));
}

void clear_plan_cache(int device) {
  const c10::cuda::OptionalCUDAGuard guard(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
  plan_cache(device).clear();
}

int64_t workspace_bound() { return workspace_bytes; }

void set_workspace_bound(int64_t bytes) {
  TORCH_CHECK_VALUE(bytes > 0, "set_workspace_bound: expected bytes > 0, got ", bytes);
  workspace_bytes = bytes;
}

bool tensor_cores() { return tensor_cores_wanted; }

void set_tensor_cores(bool use) { tensor_cores_wanted = use; }

bool one_launch() { return one_launch_wanted; }

void set_one_launch(bool use) { one_launch_wanted = use; }

std::string map_kernel_name(int D, int Dh, bool backward) {
  const Sizes n{1, D, 1, 1, 1, D, Dh};
  const LaunchPlan plan = plan_launch(facts_of<float>(n, c10::cuda::current_device(), backward, true));
  if (plan.quads > 0) return "tensor cores, " + std::to_string(plan.quads) + " quads of channels";
  return "FMA, tiles of " + std::to_string(plan.tile) + " frequencies";
}

TORCH_LIBRARY_IMPL(affnet_kernels, CUDA, m) {
  m.impl("native_forward", &forward);
  m.impl("native_backward", &backward);
}

}  // namespace affnet
