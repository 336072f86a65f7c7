// The tensor-core kernels' instances: a source file of their own, so that they compile beside the others.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>

#include <atomic>
#include <string>
#include <utility>

#include "controls.h"
#include "mma_launch.h"
#include "spectral_map_vjp_mma.cuh"

namespace affnet {
namespace {

std::atomic<bool> wanted{true};

// Calls body(kQuads), an integral constant.
template <typename Body>
void with_quads(const MapArguments<float>& a, bool backward, const Body& body) {
  switch (mma_quads(a.D, a.Dh, backward)) {
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
    default:
      return body(std::integral_constant<int, 10>{});
  }
}

uint32_t units_of_block(const MapArguments<float>& a, int64_t units) {
  return static_cast<uint32_t>((units + a.K - 1) / a.K);
}

void launch(void (*kernel)(MapArguments<float>, RowTiling), const MapArguments<float>& a, int warps, int shared_bytes,
            cudaStream_t stream) {
  if (shared_bytes > 48 * 1024) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  kernel<<<static_cast<unsigned>(a.K * a.runs), 32 * warps, shared_bytes, stream>>>(a, RowTiling(a.H, a.W));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

bool tensor_cores() { return wanted; }

void set_tensor_cores(bool use) { wanted = use; }

bool on_tensor_cores(int D, int Dh, bool backward) {
  return wanted && mma_quads(D, Dh, backward) > 0 &&
         at::cuda::getCurrentDeviceProperties()->major >= 8;  // 8.0 brought TF32
}

std::string map_kernel_name(int D, int Dh, bool backward) {
  if (on_tensor_cores(D, Dh, backward)) {
    return "tensor cores, " + std::to_string(mma_quads(D, Dh, backward)) + " quads of channels";
  }
  return "FMA, tiles of " + std::to_string(launch_for<float>(D, Dh, backward).tile) + " frequencies";
}

int64_t mma_vjp_runs(const MapArguments<float>& a, int64_t units) {
  int64_t runs = 1;
  with_quads(a, true, [&](auto quads) {
    constexpr int kQuads = std::min(decltype(quads)::value, kMaxVjpQuads);
    const int64_t tiles = vjp_tiles<kQuads>(RowTiling(a.H, a.W), units_of_block(a, units));
    runs = runs_of_block(tiles, a.K, VjpShape<kQuads>::kCtas);
  });
  return runs;
}

void launch_mma(const MapArguments<float>& a, bool backward, cudaStream_t stream) {
  with_quads(a, backward, [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value, kVjpQuads = std::min(kQuads, kMaxVjpQuads);
    if (backward) {
      using Shape = VjpShape<kVjpQuads>;
      return launch(map_vjp_mma_kernel<kVjpQuads>, a, Shape::kWarps, Shape::kBytes, stream);
    }
    MapArguments<float> shared = a;
    const int64_t tiles = RowTiling(a.H, a.W).tiles(units_of_block(a, a.units));
    shared.runs = runs_of_block((tiles + kForwardWarps - 1) / kForwardWarps, a.K, kForwardCtas<kQuads>);
    launch(map_mma_kernel<kQuads>, shared, kForwardWarps, Layers<kQuads>::kBytes, stream);
  });
}

}  // namespace affnet
