// The mixer in one launch, in float32 whether x is of 32 or of 16 bits: a CTA takes all channels of a block of some
// images at a time, and nothing but x is read and nothing but y is written. Not run on a GPU so far.
//
// Two channels are one complex plane z, so that every transform is a complex one, computed by one thread in registers
// (fft_registers.cuh): columns, rows, the map, rows back, columns back, a barrier between each. Where X_a and X_b are
// the spectra of the two channels of a plane, Z = X_a + i X_b, and as both channels are real,
//
//     2 X_a[f] = Z[f] + conj Z[-f]        2 i X_b[f] = Z[f] - conj Z[-f]
//
// A warp maps 16 frequencies and, through these formulas, their negatives, so only half of them (single_rows.cuh).
//
// Scales are folded into the parameters: of the spectrum into the first layer's weights, of both transforms back into
// the second layer and the threshold, as soft-shrink is homogeneous. The residual is added to the mask: y is the
// inverse transform of (M + 1) X, which costs one addition and leaves x out of the second half of the kernel.
//
// Counted in machine code (sm_90, ReLU, parameters staged, float32), per element, where copying alone takes 55
// instructions and 55 bytes of shared memory at the rates of an H100; SiLU costs 4 to 6 instructions more, x of 16 bits
// 2 to 3. CTAs of a multiprocessor as registers and shared memory allow.
//
//   H = W, D    32, 8  32, 12  32, 16  16, 13  16, 20  16, 32  8, 18  8, 24  8, 40
//   instructions   63      65      63      73      67      78     90     82    115
//   bytes          43      49      52      62      83     114    100     99    168
//   registers     108     160     206     202     205     192    198    213    207
//   KiB            37      59      83      51      47      99     37     51    113
//   CTAs            4       3       2       2       2       2      2      2      2
#pragma once

#include "single.h"
#include "single_map.cuh"
#include "single_passes.cuh"

namespace affnet {

// The CTAs of a block take its images in turn, a.images at a time.
template <int kH, int kW, int kQuads>
AFFNET_KERNEL(kSingleThreads, single_ctas(kH, kW, kQuads))
single_forward_kernel(SingleArguments a) {
  using Layout = SingleLayout<kH, kW, kQuads>;
  using Layers = SingleLayers<kQuads>;
  const Layout layout(a, single_layer_bytes(kQuads));
  const int ctas = static_cast<int>(a.ctas_per_block), block = static_cast<int>(cta_index()) / ctas;
  const float size = static_cast<float>(layout.H() * layout.W()), scale = 0.5f / size;
  Layers::stage(0, a.w1, a.b1, a, block, 0.5f / sqrtf(size), 1.f);
  Layers::stage(1, a.w2, a.b2, a, block, scale, scale);

  clear_missing_planes(layout);
  const int64_t stride = a.ctas_per_block * a.images;
#pragma unroll 1
  for (int64_t first = cta_index() % ctas * a.images; first < a.B; first += stride) {  // trips: images
    run_pass<kH>(ColumnPass<Layout>(layout, block, first, a.x), layout.H(), layout.W());
    barrier();
    run_pass<kW>(RowPass<Layout>(layout), layout.W(), layout.H());
    barrier();
    map_planes<kQuads>(layout, first, scale * a.threshold, scale);
    barrier();
    run_pass<kW>(InverseRowPass<Layout>(layout), layout.W(), layout.H());
    barrier();
    // A thread has the same columns here and at the start of the next images, so no barrier follows.
    run_pass<kH>(InverseColumnPass<Layout>(layout, block, first, a.y), layout.H(), layout.W());
  }
}

}  // namespace affnet
