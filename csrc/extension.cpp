// Operator schemas, and a module that calls them and reports how the extension was built. The implementations register
// themselves: cpu/mixer.cpp for CPU, cuda/mixer.cu for CUDA, affnet_kernels/ops.py for the two public operators.
//
// Only the headers that are needed: <torch/extension.h> takes three times as long to compile.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "activations.h"
#include "cpu/capability.h"
#include "cuda/fused/words.h"
#include "cuda/limits.h"
#include "eager.h"
#ifdef AFFNET_WITH_CUDA
#include "cuda/controls.h"
#endif

TORCH_LIBRARY_FRAGMENT(affnet_kernels, m) {
  m.set_python_module("affnet_kernels.ops");
  m.def(
      "mixer_forward(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Scalar sparsity_threshold, str activation, "
      "str? backend, Tensor? dynamic_threshold=None) -> Tensor");
  m.def(
      "mixer_backward(Tensor dy, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Scalar sparsity_threshold, "
      "str activation, str? backend, bool input_grad, bool parameter_grads, Tensor? dynamic_threshold=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "native_forward(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
      "float sparsity_threshold, str activation) -> Tensor");
  m.def(
      "native_backward(Tensor dy, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
      "float sparsity_threshold, str activation, bool input_grad, bool parameter_grads) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

namespace {

// What the extension was compiled for; setup.py writes the same facts to affnet_kernels/_C.json, readable without
// loading the library.
pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
#ifdef AFFNET_WITH_CUDA
  info["cuda"] = AFFNET_CUDA_VERSION;
  info["cuda_targets"] = AFFNET_CUDA_TARGETS;
  info["cufft"] = affnet::cufft_version();
#else
  info["cuda"] = pybind11::none();
#endif
  return info;
}

// The names of the activations that the kernels know, in the order of their enumerators.
std::vector<std::string> activations() {
#define AFFNET_NAME(name, enumerator) name,
  return {AFFNET_ACTIVATIONS(AFFNET_NAME)};
#undef AFFNET_NAME
}

// The sizes that the CUDA kernels take, known without CUDA.
pybind11::dict cuda_limits() {
  pybind11::dict limits;
  limits["channels"] = affnet::kMaxChannels;
  limits["plane"] = affnet::kMaxPlane;
  return limits;
}

// How the backend "cuda" runs a call, known without CUDA: its path, "one-launch" or "planned", why it is not the
// former, and the plan of the former. `x` has that dtype and [B, K D, H, W] numbers; `capability` is the device's, 90
// for 9.0; `allowed` says whether it may be one launch.
pybind11::dict cuda_path(const std::string& dtype, int64_t B, int64_t H, int64_t W, int64_t K, int64_t D, int64_t Dh,
                         int capability, bool backward, bool allowed) {
  using affnet::Element;
  for (const Element element : {Element::kFloat64, Element::kFloat32, Element::kFloat16, Element::kBfloat16}) {
    if (dtype != affnet::name_of(element)) continue;
    const affnet::PathFacts facts{B, H, W, K, D, Dh, element, capability, backward, allowed};
    const affnet::Path path = affnet::choose_path(facts);
    pybind11::dict found;
    found["path"] = path.one_launch() ? "one-launch" : "planned";
    found["why"] = affnet::in_words(path, facts);
    if (path.one_launch()) {
      const affnet::OneLaunch& launch = path.launch;
      found["ctas"] = launch.ctas;
      found["threads"] = launch.threads;
      found["shared_bytes"] = launch.shared_bytes;
      found["images"] = launch.images;
      found["unit_tiles"] = launch.unit_tiles;
      found["kernel"] = affnet::kernel_name(path, element, backward);
    }
    return found;
  }
  throw pybind11::value_error("cuda_path: expected float64, float32, float16 or bfloat16, got " + dtype);
}

#ifdef AFFNET_WITH_CUDA
pybind11::dict plan_cache_info(int device) {
  const affnet::PlanCacheInfo found = affnet::plan_cache_info(device);
  pybind11::dict info;
  info["size"] = found.size;
  info["capacity"] = found.capacity;
  info["pinned"] = found.pinned;
  info["hits"] = found.hits;
  info["misses"] = found.misses;
  info["evictions"] = found.evictions;
  return info;
}

void define_cuda_controls(pybind11::module& m) {
  using pybind11::arg;
  m.def("plan_cache_info", &plan_cache_info, arg("device") = 0, "Counts of a device's cuFFT plan cache.");
  m.def("set_plan_cache_capacity", &affnet::set_plan_cache_capacity, arg("device"), arg("plans"),
        "How many cuFFT plans a device's cache holds; those that captured CUDA graphs use are never dropped.");
  m.def("clear_plan_cache", &affnet::clear_plan_cache, arg("device") = 0,
        "Drops a device's cuFFT plans, but for those that captured CUDA graphs use.");
  m.def("workspace_bound", &affnet::workspace_bound, "Bytes of spectra that a call holds at once.");
  m.def("set_workspace_bound", &affnet::set_workspace_bound, arg("bytes"),
        "Sets that bound. One block of one image is always taken, however large.");
  m.def("tensor_cores", &affnet::tensor_cores, "Whether float32 maps run on tensor cores where there is a kernel.");
  m.def("set_tensor_cores", &affnet::set_tensor_cores, arg("use"), "Without them, plain FMA, to compare the two.");
  m.def("one_launch", &affnet::one_launch, "Whether calls are made in one launch where there is a kernel.");
  m.def("set_one_launch", &affnet::set_one_launch, arg("use"),
        "Without it, every call is planned, to compare the two.");
  m.def("map_kernel_name", &affnet::map_kernel_name, arg("D"), arg("Dh"), arg("backward"),
        "The kernel of a float32 map on the current CUDA device.");
}
#endif

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of affnet_kernels; the operators are in torch.ops.affnet_kernels.";
  m.def("build_info", &build_info, "Versions and targets this extension was compiled for.");
  using ReleaseGil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("mixer_eager", &affnet::mixer_eager, ReleaseGil(),
        "The differentiable mixer of plain tensors; None where something must see the operator itself.");
  m.def("native_forward", &affnet::native_forward, ReleaseGil(), "torch.ops.affnet_kernels.native_forward.");
  m.def("native_backward", &affnet::native_backward, ReleaseGil(), "torch.ops.affnet_kernels.native_backward.");
  m.def("cuda_limits", &cuda_limits,
        "The most channels of a block and elements of a plane that the CUDA kernels take.");
  using pybind11::arg;
  m.def(
      "cuda_path", &cuda_path, arg("dtype"), arg("B"), arg("H"), arg("W"), arg("K"), arg("D"), arg("Dh"),
      arg("capability"), arg("backward") = false, arg("allowed") = true,
      "The path of a call on CUDA, \"one-launch\" or \"planned\", why it is not the former, and the launch if it is.");
  m.def("activations", &activations, "The names of the activations, in the order of their enumerators in C++.");
  m.def("cpu_capability", &affnet::cpu_capability, "The instruction set whose variant of the CPU kernel runs here.");
#ifdef AFFNET_WITH_CUDA
  define_cuda_controls(m);
#endif
}
