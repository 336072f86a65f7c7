// Planes of the one-launch kernel between global and shared memory, each by the warp that owns it.
//
// In shared memory a plane has 16 tiles rows of 32 tiles bytes, in chunks of 16 bytes. The chunks of a row are permuted
// so that eight rows of a matrix, one chunk of each, are in different banks.
#pragma once

#include "half_guard.cuh"

namespace affnet {

template <int kTiles>
struct HalfPlanes {
  static constexpr int kRows = 16 * kTiles, kPitch = 32 * kTiles, kBytes = kRows * kPitch;

  // Of a byte of a row; its chunk may have no other bytes of that access.
  AFFNET_DEVICE static uint32_t offset(int row, int byte) {
    const int chunk = byte / 16 ^ (kTiles == 2 ? row / 2 % 4 : row / 4 % 2);
    return static_cast<uint32_t>(row * kPitch + chunk * 16 + byte % 16);
  }

  // Of the row of a matrix that a lane names, when four matrices are a tile of 16 x 16: rows first, then columns.
  AFFNET_DEVICE static uint32_t tile_row(int lane, int row_tile, int column_tile) {
    return offset(16 * row_tile + lane % 16, 32 * column_tile + lane / 16 * 16);
  }
};

// The granules of a plane that a lane copies: of every `rows`-th row, from `row` on, the one at `byte`.
struct Granules {
  int rows, row, byte;

  AFFNET_DEVICE explicit Granules(const HalfArguments& a) {
    const int lane = thread_index() % 32, per_row = 2 * a.W / a.granule;
    rows = 32 / per_row;
    row = lane < rows * per_row ? lane / per_row : a.H;
    byte = lane % per_row * a.granule;
  }
};

// Calls f(offset in the plane of global memory, row, byte of the row) for each of them.
template <typename F>
AFFNET_DEVICE void for_granules(const HalfArguments& a, const Granules& lane, F&& f) {
#pragma unroll 1
  for (int row = lane.row; row < a.H; row += lane.rows) {  // trips: granules
    f(row * 2 * a.W + lane.byte, row, lane.byte);
  }
}

// The same for a plane without padding, all of whose rows are 16-byte granules.
template <int kTiles, typename F>
AFFNET_DEVICE void for_whole_granules(F&& f) {
  constexpr int kPerRow = 2 * kTiles, kStep = 32 / kPerRow;
  static_assert(kStep % 8 == 0, "rows so far apart have their chunks permuted alike");
  const int lane = thread_index() % 32;
  const uint32_t offset = HalfPlanes<kTiles>::offset(lane / kPerRow, lane % kPerRow * 16);
#pragma unroll
  for (int row = 0; row < HalfPlanes<kTiles>::kRows; row += kStep) {
    f(16 * lane + row * HalfPlanes<kTiles>::kPitch, offset + static_cast<uint32_t>(row * HalfPlanes<kTiles>::kPitch));
  }
}

// Starts to copy a plane to shared memory.
template <int kTiles, typename V>
AFFNET_DEVICE void load_granules(const HalfArguments& a, const Granules& lane, const unsigned char* from, uint32_t to) {
  for_granules(a, lane, [&](int at, int row, int byte) {
    const uint32_t offset = to + HalfPlanes<kTiles>::offset(row, byte);
    if constexpr (sizeof(V) == 2) {
      shared_store(offset, global_load<V>(from + at));
    } else {
      copy_async<sizeof(V)>(offset, from + at);
    }
  });
}

template <int kTiles, bool kWhole>
AFFNET_DEVICE void load_plane(const HalfArguments& a, const Granules& lane, const uint16_t* plane, uint32_t to) {
  const auto* from = reinterpret_cast<const unsigned char*>(plane);
  if constexpr (kWhole) {
    for_whole_granules<kTiles>([&](int at, uint32_t offset) { copy_async<16>(to + offset, from + at); });
  } else if (a.granule == 16) {
    load_granules<kTiles, Words4>(a, lane, from, to);
  } else if (a.granule == 8) {
    load_granules<kTiles, Words2>(a, lane, from, to);
  } else if (a.granule == 4) {
    load_granules<kTiles, uint32_t>(a, lane, from, to);
  } else {
    load_granules<kTiles, uint16_t>(a, lane, from, to);
  }
}

template <int kTiles, typename V>
AFFNET_DEVICE void store_granules(const HalfArguments& a, const Granules& lane, unsigned char* to, uint32_t from) {
  for_granules(a, lane, [&](int at, int row, int byte) {
    global_store(to + at, shared_load<V>(from + HalfPlanes<kTiles>::offset(row, byte)));
  });
}

// Copies a plane from shared memory.
template <int kTiles, bool kWhole>
AFFNET_DEVICE void store_plane(const HalfArguments& a, const Granules& lane, uint16_t* plane, uint32_t from) {
  auto* to = reinterpret_cast<unsigned char*>(plane);
  if constexpr (kWhole) {
    for_whole_granules<kTiles>(
        [&](int at, uint32_t offset) { global_store(to + at, shared_load<Words4>(from + offset)); });
  } else if (a.granule == 16) {
    store_granules<kTiles, Words4>(a, lane, to, from);
  } else if (a.granule == 8) {
    store_granules<kTiles, Words2>(a, lane, to, from);
  } else if (a.granule == 4) {
    store_granules<kTiles, uint32_t>(a, lane, to, from);
  } else {
    store_granules<kTiles, uint16_t>(a, lane, to, from);
  }
}

// Waits until all but the last `pending` groups of copies have arrived.
AFFNET_DEVICE void wait_for_plane(int pending) {
  if (pending >= 3) {
    copy_async_wait<3>();
  } else if (pending == 2) {
    copy_async_wait<2>();
  } else if (pending == 1) {
    copy_async_wait<1>();
  } else {
    copy_async_wait<0>();
  }
}

}  // namespace affnet
