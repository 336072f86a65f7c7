// The operators on CUDA: cuFFT, one kernel for the spectral map, cuFFT, a chunk of block-images at a time. Nothing here
// waits for the device; after a call of the same size has made the plans, it can be captured in a CUDA graph.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "checks.h"
#include "controls.h"
#include "mma_launch.h"
#include "spectral_map_vjp.cuh"
#include "transforms.h"

namespace affnet {
namespace {

constexpr size_t kDefaultPlans = 128;  // of a device; a call takes two, or four where its last chunk is smaller

// Spectra and staging of a chunk. Small enough that a chunk's intermediate results may stay in the L2 cache of a large
// GPU, large enough that its launches do not count: predicted, not measured.
std::atomic<int64_t> workspace_bytes{int64_t{32} << 20};

// CTAs of the backward map, over all blocks, and the bytes of their partial sums. Not taken from the device, so that
// sums are the same on every GPU.
constexpr int64_t kBackwardCtas = 512, kPartialBytes = int64_t{32} << 20;

template <typename T>
void launch_fma(const MapArguments<T>& a, bool backward, cudaStream_t stream) {
  const Launch launch = launch_for<T>(a.D, a.Dh, backward);
  const auto run = [&](auto* kernel, int64_t ctas) {
    if (launch.shared_bytes > 48 * 1024) {
      C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes));
    }
    kernel<<<static_cast<unsigned>(ctas), launch.threads, launch.shared_bytes, stream>>>(a);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  const int64_t ctas = backward ? a.K * a.runs : a.units * tiling_of(a.H, a.W, launch.tile).tiles;
  switch (launch.tile) {
    case 64:
      return run(backward ? map_vjp_kernel<T, 64> : map_kernel<T, 64>, ctas);
    case 32:
      return run(backward ? map_vjp_kernel<T, 32> : map_kernel<T, 32>, ctas);
    case 16:
      return run(backward ? map_vjp_kernel<T, 16> : map_kernel<T, 16>, ctas);
    default:
      return run(backward ? map_vjp_kernel<T, 8> : map_kernel<T, 8>, ctas);
  }
}

// A call's tensors, contiguous, and what its chunks share.
template <typename S, typename T>
struct Call {
  Sizes n;
  at::Tensor x;
  Parameters parameters;
  MapArguments<T> map{};
  bool tensor_cores = false;  // else plain FMA
  Transforms<S, T> transforms;

  Call(const Sizes& n, const at::Tensor& x, const Parameters& parameters, double sparsity_threshold,
       Activation activation, bool backward)
      : n(n), x(x.contiguous()), parameters(parameters.contiguous()), transforms(n, this->x) {
    const auto& [w1, b1, w2, b2] = this->parameters;
    map.w1 = w1.template const_data_ptr<T>(), map.b1 = b1.template const_data_ptr<T>();
    map.w2 = w2.template const_data_ptr<T>(), map.b2 = b2.template const_data_ptr<T>();
    map.K = static_cast<int>(n.K), map.D = static_cast<int>(n.D), map.Dh = static_cast<int>(n.Dh);
    map.H = static_cast<int>(n.H), map.W = static_cast<int>(n.W);
    map.scale = static_cast<T>(1 / std::sqrt(static_cast<double>(n.H) * static_cast<double>(n.W)));
    map.threshold = static_cast<T>(sparsity_threshold);
    map.activation = activation;
    if constexpr (std::is_same_v<T, float>) tensor_cores = on_tensor_cores(map.D, map.Dh, backward);
  }

  int64_t units() const { return n.B * n.K; }

  // As many block-images as the workspace bound allows, at least one, in chunks of nearly equal size.
  int64_t units_at_once(int spectra) const {
    const int64_t staged = std::is_same_v<S, T> ? 0 : transforms.reals(1) * static_cast<int64_t>(sizeof(T));
    const int64_t unit = spectra * transforms.numbers(1) * static_cast<int64_t>(sizeof(Complex<T>)) + staged;
    // Frequencies are counted in 32 bits, and so are CTAs, of which each has four or more.
    const int64_t countable = (int64_t{1} << 30) / (n.H * (n.W / 2 + 1));
    const int64_t most = std::clamp<int64_t>(std::min(workspace_bytes.load() / unit, countable), 1, units());
    const int64_t chunks = (units() + most - 1) / most;
    return (units() + chunks - 1) / chunks;
  }

  at::Tensor spectra(int64_t units_at_once) const {
    const int64_t bytes = transforms.numbers(units_at_once) * static_cast<int64_t>(sizeof(Complex<T>));
    return at::empty({bytes}, x.options().dtype(at::kByte));
  }

  // CTAs that share a block in the backward map.
  int64_t backward_runs(int64_t units_at_once) const {
    if constexpr (std::is_same_v<T, float>) {
      if (tensor_cores) return mma_vjp_runs(map, units_at_once);
    }
    const int tile = launch_for<T>(map.D, map.Dh, true).tile;
    const int64_t tiles = (units_at_once + n.K - 1) / n.K * tiling_of(map.H, map.W, tile).tiles;
    return std::min(kBackwardCtas / n.K, tiles);
  }

  void launch(bool backward) const {
    if constexpr (std::is_same_v<T, float>) {
      if (tensor_cores) return launch_mma(map, backward, transforms.stream());
    }
    launch_fma(map, backward, transforms.stream());
  }

  // Calls body(first unit, units, first element) for every chunk.
  template <typename Body>
  void for_each_chunk(int64_t units_at_once, const Body& body) {
    for (int64_t first = 0; first < units(); first += units_at_once) {
      map.first_unit = first;
      map.units = std::min(units_at_once, units() - first);
      body(map.units, transforms.reals(first));
    }
  }
};

template <typename S, typename T>
at::Tensor run_forward(Call<S, T>& call) {
  at::Tensor y = at::empty_like(call.x);
  const int64_t units_at_once = call.units_at_once(1);
  const at::Tensor spectra = call.spectra(units_at_once);
  call.map.X = static_cast<Complex<T>*>(spectra.data_ptr());
  const S* const x = call.x.template const_data_ptr<S>();
  S* const out = y.template data_ptr<S>();
  call.for_each_chunk(units_at_once, [&](int64_t units, int64_t at) {
    call.transforms.forward(x + at, call.map.X, units);
    call.launch(false);
    call.transforms.inverse(call.map.X, x + at, out + at, units);
  });
  return y;
}

template <typename S, typename T>
Gradients run_backward(Call<S, T>& call, const at::Tensor& dy, bool input_grad, bool parameter_grads) {
  const Sizes& n = call.n;
  at::Tensor dx = input_grad ? at::empty_like(call.x) : at::empty({0}, call.x.options());
  const int64_t units_at_once = call.units_at_once(2);
  const at::Tensor X = call.spectra(units_at_once), G = call.spectra(units_at_once);
  call.map.X = static_cast<Complex<T>*>(X.data_ptr());
  call.map.G = static_cast<Complex<T>*>(G.data_ptr());
  call.map.input_grad = input_grad;

  const int64_t size = partial_size(call.map.D, call.map.Dh);
  const int64_t room = kPartialBytes / (n.K * size * static_cast<int64_t>(sizeof(T)));
  const int64_t runs = call.backward_runs(units_at_once);
  call.map.runs = std::max<int64_t>(1, parameter_grads ? std::min(runs, room) : runs);
  at::Tensor partials;
  if (parameter_grads) {
    partials = at::zeros({n.K * call.map.runs, size}, call.parameters.w1.options());
    call.map.partials = partials.template data_ptr<T>();
  }

  const S* const x = call.x.template const_data_ptr<S>();
  const S* const from = dy.const_data_ptr<S>();
  S* const out = input_grad ? dx.template data_ptr<S>() : nullptr;
  call.for_each_chunk(units_at_once, [&](int64_t units, int64_t at) {
    call.transforms.forward(x + at, call.map.X, units);
    call.transforms.forward(from + at, call.map.G, units);
    call.launch(true);
    if (input_grad) call.transforms.inverse(call.map.G, from + at, out + at, units);
  });

  const auto gradient = [&](const at::Tensor& p) {
    return parameter_grads ? at::empty_like(p) : at::empty({0}, p.options());
  };
  const auto& [w1, b1, w2, b2] = call.parameters;
  at::Tensor dw1 = gradient(w1), db1 = gradient(b1), dw2 = gradient(w2), db2 = gradient(b2);
  if (parameter_grads) {
    constexpr int kThreads = 256;
    const auto ctas = static_cast<unsigned>((n.K * size + kThreads - 1) / kThreads);
    reduce_kernel<T><<<ctas, kThreads, 0, call.transforms.stream()>>>(
        call.map.partials, call.map.runs, call.map.K, call.map.D, call.map.Dh, dw1.template data_ptr<T>(),
        db1.template data_ptr<T>(), dw2.template data_ptr<T>(), db2.template data_ptr<T>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {dx, dw1, db1, dw2, db2};
}

void check_limits(const char* function, const Sizes& n) {
  TORCH_CHECK_VALUE(std::max(n.D, n.Dh) <= kMaxChannels, function, ": expected up to ", kMaxChannels,
                    " channels and hidden channels a block, got ", n.D, " and ", n.Dh);
  TORCH_CHECK_VALUE(n.H * n.W <= int64_t{1} << 30, function, ": expected up to 2^30 elements a plane, got ", n.H * n.W);
}

// Calls body(S{}, T{}) with the tensors' type and the one computed in.
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
  const c10::cuda::CUDAGuard guard(x.device());
  return with_types(name, x.scalar_type(), [&](auto s, auto t) {
    Call<decltype(s), decltype(t)> call(n, x, parameters, sparsity_threshold, activation_named(name, activation),
                                        false);
    return run_forward(call);
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
  const c10::cuda::CUDAGuard guard(x.device());
  return with_types(name, x.scalar_type(), [&](auto s, auto t) {
    Call<decltype(s), decltype(t)> call(n, x, parameters, sparsity_threshold, activation_named(name, activation), true);
    return run_backward(call, dy.contiguous(), input_grad, parameter_grads);
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
  check_cufft(cufftGetVersion(&version), "tell its version");
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

TORCH_LIBRARY_IMPL(affnet_kernels, CUDA, m) {
  m.impl("native_forward", &forward);
  m.impl("native_backward", &backward);
}

}  // namespace affnet
