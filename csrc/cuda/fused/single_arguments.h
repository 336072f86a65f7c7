// The arguments of the one-launch kernels that compute in float32.
#pragma once

#include "../../activations.h"
#include "element.h"
#include "single_plan.h"

namespace affnet {

struct SingleArguments {
  const void* x;    // [B, K D, H, W]
  void* y;          // the same; may not be the same memory
  const float* w1;  // [2, K, D, D]
  const float* b1;  // [2, K, D]
  const float* w2;  // [2, K, D, D]
  const float* b2;  // [2, K, D]
  int64_t B, ctas_per_block;
  int K, D, H, W;
  int images;            // that a CTA takes at a time
  PlaneStrides strides;  // read by the instances for any sizes
  float threshold;
  Activation activation;
  Element element;  // the type of x and y, and of dy; not float64
};

// Of the backward pass. y of `call` is dx.
struct SingleVjpArguments {
  SingleArguments call;
  const void* dy;   // [B, K D, H, W]
  float* partials;  // [K, ctas_per_block, partial_size(D, D)], overwritten; null if no parameter gradients are wanted
  bool input_grad;
};

}  // namespace affnet
