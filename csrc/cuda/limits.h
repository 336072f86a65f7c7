// The sizes the CUDA kernels take. The one statement of these limits: the launcher checks them, and Python reads them
// through `_C.cuda_limits()`, which needs no CUDA.
#pragma once

#include <cstdint>

namespace affnet {

constexpr int kMaxChannels = 256;                // of D and of Dh
constexpr int64_t kMaxPlane = int64_t{1} << 30;  // H * W: frequencies are counted in 32 bits
constexpr int kMaxSharedBytes = 99 * 1024;       // that a CTA may have on every supported device

}  // namespace affnet
