// The kernel of one capability. setup.py compiles this file once for each, with AFFNET_CAPABILITY as the namespace of
// everything in it; it uses nothing of the standard library that a linker could merge between them.
#include "kernel.h"

#include "tile.h"

#define AFFNET_STRING_OF(name) #name
#define AFFNET_STRING(name) AFFNET_STRING_OF(name)

namespace affnet::AFFNET_CAPABILITY {
namespace {

// 1 / sqrt(H W), the scale of the orthonormal transform.
template <typename T>
T transform_scale(const Call<T>& call) {
  return static_cast<T>(1 / __builtin_sqrt(static_cast<double>(call.height) * static_cast<double>(call.width)));
}

template <typename T>
size_t scratch_bytes(const Call<T>& call, bool backward) {
  return Scratch<T>(call, backward, nullptr).bytes;
}

template <typename T>
void forward(const Call<T>& call, int64_t begin, int64_t end, char* memory) {
  const Scratch<T> scratch(call, false, memory);
  const T s = transform_scale(call), scale = s * s / 2;
  const int64_t groups = call.groups();
  for (int64_t k = begin / groups; k * groups < end; ++k) {
    const Block<T> block(call, k, scratch, s / 2);
    const int64_t last = end - k * groups < groups ? end - k * groups : groups;
    for (int64_t i = begin > k * groups ? begin - k * groups : 0; i < last; ++i) {
      const Group group = group_of(call, i);
      if (forward_tile(call, block, k, group.first, group.images_log2, scale, scratch)) continue;
      // Images of a tile share transforms: what is not finite in one spoils the others, so each goes alone.
      for (int64_t image = 0; group.images_log2 > 0 && image < int64_t{1} << group.images_log2; ++image) {
        forward_tile(call, block, k, group.first + image, 0, scale, scratch);
      }
    }
  }
}

template <typename T>
void backward(const Call<T>& call, int k, int64_t begin, int64_t end, T* partial, char* memory) {
  const Scratch<T> scratch(call, true, memory);
  const T s = transform_scale(call), scale = s * s / 2;
  const Block<T> block(call, k, scratch, s / 2);
  const int64_t size = call.parameter_grads ? call.partial_size() : 0;
  const int64_t weight_1 = int64_t{2} * call.size * call.hidden;
  for (int64_t i = 0; i < size; ++i) partial[i] = 0;
  for (int64_t index = begin; index < end; ++index) {
    const Group group = group_of(call, index);
    for (int64_t i = 0; i < size; ++i) scratch.partial[i] = 0;
    if (!backward_tile(call, block, k, group.first, group.images_log2, scale, scratch) && group.images_log2 > 0) {
      for (int64_t i = 0; i < size; ++i) scratch.partial[i] = 0;
      for (int64_t image = 0; image < int64_t{1} << group.images_log2; ++image) {
        backward_tile(call, block, k, group.first + image, 0, scale, scratch);
      }
    }
    for (int64_t i = 0; i < size; ++i) partial[i] += scratch.partial[i] * (i < weight_1 ? scale * s / 2 : scale);
  }
}

template <typename T>
constexpr Kernel<T> kKernel{Vec<T>::kLanes, &scratch_bytes<T>, &forward<T>, &backward<T>};

}  // namespace

const Kernels kKernels{AFFNET_STRING(AFFNET_CAPABILITY), kKernel<float>, kKernel<double>};

}  // namespace affnet::AFFNET_CAPABILITY
