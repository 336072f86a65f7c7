// The five gradients of the mixer in one launch, in float32 whether x and dy are of 32 or of 16 bits, but for the sum
// over CTAs, which reduce_kernel of spectral_map_vjp.cuh adds up in order. A CTA keeps the spectra of x and of dy of
// some images in shared memory, and its sums of the parameter gradients in registers until its last image. Not run on
// a GPU so far.
//
// Counted in machine code (sm_90, 32x32, D = 16, ReLU, float32): 235 instructions an element, where copying alone takes
// 83 at the rates of an H100: at best 0.35 of a copy's rate. 205 registers; from five quads on 255, and 24 to 512 bytes
// spill, and 4 bytes in the kernel of four quads for any size.
#pragma once

#include "single.h"
#include "single_passes.cuh"
#include "single_vjp_map.cuh"

namespace affnet {

template <int kH, int kW, int kQuads>
AFFNET_KERNEL(kWarpThreads* vjp_shape(kQuads).warps, 1)
single_vjp_kernel(SingleVjpArguments a) {
  using Layout = SingleLayout<kH, kW, kQuads>;
  using Operands = affnet::Operands<kQuads>;
  constexpr int kWarps = Operands::kWarps;
  const SingleArguments& call = a.call;
  const Layout x(call, SingleVjpLayers<kQuads>::kPlanes);
  const Layout g(call, x.start + call.images * Layout::kImagePlanes * x.plane_bytes());
  const int ctas = static_cast<int>(call.ctas_per_block), block = static_cast<int>(cta_index()) / ctas;
  SingleVjpLayers<kQuads>().stage(call, block);
  Operands::clear_padding();
  clear_missing_planes(x);
  clear_missing_planes(g);

  const Lane lane;
  const int warp = thread_index() / kWarpThreads;
  SingleSums<kQuads> sums;
  const int64_t stride = call.ctas_per_block * call.images;
#pragma unroll 1
  for (int64_t first = cta_index() % ctas * call.images; first < call.B; first += stride) {  // trips: images
    run_pass<kH>(ColumnPass<Layout>(x, block, first, call.x), x.H(), x.W());
    run_pass<kH>(ColumnPass<Layout>(g, block, first, a.dy), x.H(), x.W());
    barrier();
    run_pass<kW>(RowPass<Layout>(x), x.W(), x.H());
    run_pass<kW>(RowPass<Layout>(g), x.W(), x.H());
    barrier();
    const SingleTiling<Layout> tiling(x, first);
#pragma unroll 1
    for (int tile = 0; tile < tiling.regular_tiles(); tile += kWarps) {  // trips: regular
      map_vjp_tile<false, kQuads>(tiling, g, tile + warp, a, lane, sums);
    }
#pragma unroll 1
    for (int tile = 0; tile < tiling.special_tiles(); tile += kWarps) {  // trips: special
      map_vjp_tile<true, kQuads>(tiling, g, tile + warp, a, lane, sums);
    }
    barrier();
    if (!a.input_grad) continue;
    run_pass<kW>(InverseRowPass<Layout>(g), x.W(), x.H());
    barrier();
    run_pass<kH>(InverseColumnPass<Layout>(g, block, first, call.y), x.H(), x.W());
  }
  if (a.partials != nullptr) sums.flush(a.partials + cta_index() * partial_size(call.D, call.D), call.D, lane);
}

}  // namespace affnet
