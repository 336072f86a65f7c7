// The constants of the transforms in device memory.
#include <c10/cuda/CUDAException.h>

#include "half_kernel.h"

namespace affnet {
namespace {

__device__ const std::array<uint32_t, dft_table_words()> table = make_dft_table();

}  // namespace

const uint32_t* dft_table() {
  void* address = nullptr;
  C10_CUDA_CHECK(cudaGetSymbolAddress(&address, table));
  return static_cast<const uint32_t*>(address);
}

}  // namespace affnet
