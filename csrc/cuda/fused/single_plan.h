// How the one-launch float32 kernel (single_forward.cuh) runs a call: the instance, the planes' layout in shared
// memory, images per CTA, threads and grid. A pure function of the call's sizes, without torch and CUDA, like
// launch_plan.h.
//
// Shared memory holds the weights of both layers and complex planes, each of two channels: channel 2 p is the real part
// and channel 2 p + 1 the imaginary part of plane p.
#pragma once

#include <iterator>

#include "../launch_plan.h"

namespace affnet {

// A compiled kernel: for one size of the planes, or for any of them if H and W are 0; and for so many quads of
// channels.
struct SingleInstance {
  int H, W, quads;

  bool operator==(const SingleInstance&) const = default;
};

}  // namespace affnet

// The instances: those of the released networks at 256, 224 and 320 pixels, then the others in ascending order of
// quads. -D may shorten the list.
#ifndef AFFNET_SINGLE_INSTANCES
#define AFFNET_SINGLE_SQUARE(N, a, b, c) \
  {N, N, a}, {N, N, b}, { N, N, c }
#define AFFNET_SINGLE_INSTANCES                                                                                 \
  AFFNET_SINGLE_SQUARE(32, 2, 3, 4), AFFNET_SINGLE_SQUARE(28, 2, 3, 4), AFFNET_SINGLE_SQUARE(40, 2, 3, 4),      \
      AFFNET_SINGLE_SQUARE(16, 4, 5, 8), AFFNET_SINGLE_SQUARE(14, 4, 5, 8), AFFNET_SINGLE_SQUARE(20, 4, 5, 8),  \
      AFFNET_SINGLE_SQUARE(8, 5, 6, 10), AFFNET_SINGLE_SQUARE(7, 5, 6, 10), AFFNET_SINGLE_SQUARE(10, 5, 6, 10), \
      {0, 0, 2}, {0, 0, 3}, {0, 0, 4}, {0, 0, 5}, {0, 0, 6}, {0, 0, 8}, {0, 0, 10}
#endif

namespace affnet {

constexpr SingleInstance kSingleInstances[] = {AFFNET_SINGLE_INSTANCES};

// The lengths that a transform in registers exists for.
AFFNET_HD constexpr bool is_single_length(int64_t n) {
  return n == 7 || n == 8 || n == 10 || n == 14 || n == 16 || n == 20 || n == 28 || n == 32 || n == 40;
}

// A thread's transform: number `at` across plane `plane`. Threads take neighbours of a plane and then the next plane,
// except that with eight to a plane sixteen threads, whose accesses share a pass through the banks, take four planes.
struct TransformPlace {
  int plane, at;
};

AFFNET_HD constexpr TransformPlace transform_place(int item, int across) {
  if (across == 8) return {item / 32 * 4 + item / 4 % 4, item % 4 + item / 16 % 2 * 4};
  return {item / across, item % across};
}

AFFNET_HD constexpr int transform_items(int planes, int across) {
  return across == 8 ? (planes + 3) / 4 * 32 : planes * across;
}

// Distances in shared memory, in complex numbers: of rows and of planes.
struct PlaneStrides {
  int row, plane;
};

// How often the 16 banks of eight bytes are needed for an access of all threads to their transforms, where those of a
// plane are `step` apart.
constexpr int transform_wavefronts(int planes, int across, int step, int plane_stride) {
  int sum = 0;
  for (int first = 0; first < transform_items(planes, across); first += 16) {
    int lanes[16] = {}, most = 0;
    for (int item = first; item < first + 16; ++item) {
      const TransformPlace place = transform_place(item, across);
      if (place.plane >= planes) continue;
      int& lane = lanes[(place.plane * plane_stride + place.at * step) % 16];
      most = ++lane > most ? lane : most;
    }
    sum += most;
  }
  return sum;
}

// The same for the map: four planes at four frequencies of a column.
constexpr int map_wavefronts(const PlaneStrides& strides) {
  int lanes[16] = {}, most = 0;
  for (int lane = 0; lane < 16; ++lane) {
    int& count = lanes[(lane % 4 * strides.plane + lane / 4 * strides.row) % 16];
    most = ++count > most ? count : most;
  }
  return most;
}

// The strides with the fewest bank conflicts, then the smallest ones. Columns are accessed twice by transforms, rows
// four times, and the map loads and stores every number once.
constexpr PlaneStrides plane_strides(int H, int W) {
  constexpr int kPlanes = 8;  // the pattern repeats
  PlaneStrides best{};
  int64_t least = int64_t{1} << 60;
  for (int row = W; row < W + 4; ++row) {
    for (int plane = H * row; plane < H * row + 16; ++plane) {
      const PlaneStrides strides{row, plane};
      const int columns = transform_wavefronts(kPlanes, W, 1, plane) * H;
      const int rows = transform_wavefronts(kPlanes, H, row, plane) * W;
      const int map = map_wavefronts(strides) * H * W * kPlanes / 16;
      const int64_t cost = (int64_t{2 * columns} + 4 * rows + 2 * map) << 16 | plane;
      if (cost < least) least = cost, best = strides;
    }
  }
  return best;
}

// A warp maps that many tiles of 16 frequencies together, so that a weight is read once for all of them. As many as
// there are registers for.
AFFNET_HD constexpr int single_unit_tiles(int quads) { return quads <= 4 ? 2 : 1; }

constexpr int kSingleWarps = 4;
constexpr int kSingleThreads = kSingleWarps * kWarpThreads;

// Bytes of both layers' weights and biases, and of the planes of one image.
AFFNET_HD constexpr int single_layer_bytes(int quads) {
  return 2 * (quads * quads * kWarpThreads * 16 + quads * kQuadChannels * 8);
}
constexpr int single_plane_bytes(const PlaneStrides& strides, int planes) { return planes * strides.plane * 8; }

// CTAs per multiprocessor that there are registers for.
constexpr int single_register_ctas(int quads) { return quads <= 2 ? 4 : quads <= 3 ? 3 : 2; }

// CTAs per multiprocessor that an instance is compiled for.
constexpr int single_ctas(int H, int W, int quads) {
  if (H == 0) return 2;
  const int bytes = single_layer_bytes(quads) + single_plane_bytes(plane_strides(H, W), 2 * quads);
  return std::clamp(227 * 1024 / (bytes + 1024), 1, single_register_ctas(quads));
}

// The strides of an instance for one size, found once by the compiler; for any other sizes an odd row stride and a
// plane stride of 4 modulo 8, with few conflicts.
struct InstanceStrides {
  PlaneStrides of[std::size(kSingleInstances)] = {};

  constexpr InstanceStrides() {
    for (size_t i = 0; i < std::size(kSingleInstances); ++i) {
      const auto [H, W, quads] = kSingleInstances[i];
      of[i] = H == 0                                                                      ? PlaneStrides{}
              : i > 0 && H == kSingleInstances[i - 1].H && W == kSingleInstances[i - 1].W ? of[i - 1]
                                                                                          : plane_strides(H, W);
    }
  }
};

constexpr InstanceStrides kInstanceStrides;

constexpr PlaneStrides strides_of(int instance, int H, int W) {
  if (kSingleInstances[instance].H > 0) return kInstanceStrides.of[instance];
  const int row = W | 1;
  return {row, (H * row + 3) / 8 * 8 + 4};
}

struct SinglePlan {
  int instance;  // in kSingleInstances; -1: none, the call takes another path
  int images;    // that a CTA takes at a time
  int threads;
  int shared_bytes;
  int ctas;  // per multiprocessor, as far as shared memory goes
  PlaneStrides strides;
  int64_t ctas_per_block;

  constexpr int64_t grid(int64_t K) const { return K * ctas_per_block; }
};

// Images that a CTA takes at a time: enough to give every thread a transform.
constexpr int single_images(int64_t B, int planes, int shorter, int threads) {
  int images = 1;
  while (images < 4 && 2 * images <= B && images * planes * shorter < threads) images *= 2;
  return images;
}

// Whether an instance has a backward kernel: those for any sizes and those of 256 pixels, as they take long to compile.
constexpr bool has_backward(const SingleInstance& i) {
  return i.quads <= kMaxVjpQuads && (i.H == 0 || i.H == 8 || i.H == 16 || i.H == 32);
}

// The index of the instance for a call, -1 if there is none.
constexpr int single_instance(int64_t H, int64_t W, int quads, bool backward) {
  int index = 0;
  for (const SingleInstance& i : kSingleInstances) {
    const bool fits = (i.H == H && i.W == W && i.quads == quads) || (i.H == 0 && i.quads >= quads);
    if (fits && (!backward || has_backward(i))) return index;
    ++index;
  }
  return -1;
}

// The device that grids are made for, whatever the device is, so that sums are the same on every GPU.
constexpr int kGridSharedBytes = 227 * 1024;

constexpr int ctas_of(int shared_bytes, int most) {
  constexpr int kReserved = 1024;  // of each CTA
  return std::clamp((kGridSharedBytes + kReserved) / (shared_bytes + kReserved), 1, most);
}

// The plan of a call, where a CTA may have `shared_limit` bytes of shared memory. Without an instance `shared_bytes` is
// 0 if there is none for the sizes, else what the limit does not allow.
constexpr SinglePlan plan_single(int64_t B, int64_t H, int64_t W, int64_t K, int64_t D, int64_t Dh, int shared_limit,
                                 bool backward = false) {
  SinglePlan plan{};
  plan.instance = -1;
  if (Dh != D || D < 5 || D > 40 || !is_single_length(H) || !is_single_length(W)) return plan;
  const int index = single_instance(H, W, quads_of(static_cast<int>(D)), backward);
  if (index < 0) return plan;
  const int quads = kSingleInstances[index].quads;
  plan.threads = backward ? vjp_shape(quads).warps * kWarpThreads : kSingleThreads;
  plan.strides = strides_of(index, static_cast<int>(H), static_cast<int>(W));
  plan.images = single_images(B, static_cast<int>(D + 1) / 2, static_cast<int>(std::min(H, W)), plan.threads);
  const int plane_bytes = plan.images * single_plane_bytes(plan.strides, 2 * quads);
  plan.shared_bytes =
      backward ? vjp_shape(quads).shared_bytes + 2 * plane_bytes : single_layer_bytes(quads) + plane_bytes;
  if (plan.shared_bytes > shared_limit) return plan;
  plan.ctas = ctas_of(plan.shared_bytes, backward ? 2 : single_register_ctas(quads));
  plan.ctas_per_block = mma_ctas_per_block((B + plan.images - 1) / plan.images, K, plan.ctas);
  plan.instance = index;
  return plan;
}

}  // namespace affnet
