// Operator schemas, and a module that reports how the extension was built. The implementations register themselves:
// cpu/mixer.cpp for CPU, cuda/mixer.cu for CUDA.
#include <torch/extension.h>
#include <torch/library.h>

#include "cpu/capability.h"

TORCH_LIBRARY_FRAGMENT(affnet_kernels, m) {
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
#else
  info["cuda"] = pybind11::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of affnet_kernels; the operators are in torch.ops.affnet_kernels.";
  m.def("build_info", &build_info, "Versions and targets this extension was compiled for.");
  m.def("cpu_capability", &affnet::cpu_capability, "The instruction set whose variant of the CPU kernel runs here.");
}
