// Picks the instance of a plan, in parts that compile beside each other.
#pragma once

#include "half_forward.cuh"
#include "half_kernel.h"

namespace affnet {

template <int kTiles, bool kWhole, int... kQuads>
HalfKernel half_kernel_of(const HalfPlan& plan, std::integer_sequence<int, kQuads...>) {
  HalfKernel found = nullptr;
  ((found = plan.quads == kQuads ? half_forward_kernel<kTiles, kQuads, kWhole> : found), ...);
  return found;
}

// Null if the plan is of other tiles.
template <int kTiles>
HalfKernel half_kernel_of(const HalfPlan& plan) {
  if (plan.tiles != kTiles) return nullptr;
  if constexpr (kTiles < 3) {
    if (plan.whole) return half_kernel_of<kTiles, true>(plan, HalfQuads<kTiles>{});
  }
  return half_kernel_of<kTiles, false>(plan, HalfQuads<kTiles>{});
}

}  // namespace affnet
