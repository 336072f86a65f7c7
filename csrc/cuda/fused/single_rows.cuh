// The frequencies that a lane maps, and how their spectra come from the complex planes and return to them.
#pragma once

#include "single_layout.cuh"

namespace affnet {

// The 16-frequency tiles of a CTA's images: first those of the regular columns 1 <= w < W / 2, which stand for
// their negatives; then those of the special columns w = 0 and w = W / 2, eight frequencies and their negatives each.
template <typename Layout>
struct SingleTiling {
  const Layout& layout;
  int images;  // that exist

  AFFNET_DEVICE SingleTiling(const Layout& layout, int64_t first_image)
      : layout(layout), images(layout.images_from(first_image)) {}

  AFFNET_DEVICE int columns() const { return (layout.W() - 1) / 2; }
  AFFNET_DEVICE int special_columns() const { return layout.W() % 2 == 0 ? 2 : 1; }
  AFFNET_DEVICE int pairs() const { return (layout.H() + 1) / 2; }      // of a special column
  AFFNET_DEVICE int regular() const { return layout.H() * columns(); }  // frequencies of an image
  AFFNET_DEVICE int special() const { return special_columns() * pairs(); }
  // Whether all frequencies of a unit of regular tiles exist: known to the compiler for the released sizes.
  AFFNET_DEVICE bool whole_units() const { return regular() % (kTileRows * Layout::kUnitTiles) == 0; }
  AFFNET_DEVICE int regular_tiles() const { return (images * regular() + kTileRows - 1) / kTileRows; }
  AFFNET_DEVICE int special_tiles() const { return (images * special() + kTileRows / 2 - 1) / (kTileRows / 2); }
  AFFNET_DEVICE static int units(int tiles) { return (tiles + Layout::kUnitTiles - 1) / Layout::kUnitTiles; }
};

// A frequency and its negative: where they are in the first plane.
struct SingleRow {
  uint32_t at, negative;
  bool exists;
};

// A lane's rows of a tile, for its first plane. In a special tile row 1 is the negative of row 0, or, if `own` is set,
// both rows are their own negatives: k = 0 and, for an even H, k = H / 2.
template <bool kSpecial>
struct SingleRows {
  SingleRow row[2];
  bool own = false;

  AFFNET_DEVICE SingleRows() : row{} {}

  template <typename Layout>
  AFFNET_DEVICE SingleRows(const SingleTiling<Layout>& tiling, int tile, const Lane& lane, bool whole_units = false) {
    const Layout& layout = tiling.layout;
    const int H = layout.H(), W = layout.W();
    if constexpr (kSpecial) {
      const int item = tile * (kTileRows / 2) + lane.g;
      const int image = item / tiling.special(), rest = item - image * tiling.special();
      const int column = rest / tiling.pairs(), j = rest - column * tiling.pairs();
      const int plane = image * Layout::kImagePlanes, w = column * (W / 2);
      own = j == 0;
      const int other = own ? (H % 2 == 0 ? H / 2 : 0) : H - j;
      const uint32_t first = layout.offset(plane, j, w), second = layout.offset(plane, other, w);
      const bool exists = image < tiling.images;
      row[0] = {first, own ? first : second, exists};
      row[1] = {second, own ? second : first, exists};
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int item = tile * kTileRows + 8 * r + lane.g;
        const int image = item / tiling.regular(), rest = item - image * tiling.regular();
        const int w = rest / H + 1, k = rest - (w - 1) * H, plane = image * Layout::kImagePlanes;
        row[r] = {layout.offset(plane, k, w), layout.offset(plane, k == 0 ? 0 : H - k, W - w),
                  whole_units || image < tiling.images};
      }
    }
  }

  // Whether a row's result is stored: the negative of a special frequency is stored with it.
  AFFNET_DEVICE bool stores(int r) const { return row[r].exists && (r == 0 || !kSpecial || own); }
};

AFFNET_DEVICE Complex<float> load_or_zero(bool exists, uint32_t at) {
  return exists ? shared_load<Complex<float>>(at) : Complex<float>{0.f, 0.f};
}

// Where a lane's planes of a pair of quads are, from that of its image. `last` is the last quad if their number is odd.
template <typename Layout>
struct LanePlanes {
  const Layout& layout;
  uint32_t first, first_last;  // plane t, and t % 2
  int t;

  AFFNET_DEVICE LanePlanes(const Layout& layout, const Lane& lane)
      : layout(layout),
        first(lane.t * layout.plane_bytes()),
        first_last(lane.t % 2 * layout.plane_bytes()),
        t(lane.t) {}

  AFFNET_DEVICE uint32_t offset(int quad, bool last) const {
    return (last ? first_last : first) + 2 * quad * layout.plane_bytes();
  }

  // Whether the block has the plane; otherwise it stays zero.
  AFFNET_DEVICE bool exists(int quad, bool last) const { return 2 * quad + (last ? t % 2 : t) < layout.planes; }
};

// Twice the unnormalised spectra of a lane's channels in quads `quad` (even) and quad + 1.
template <typename Rows, typename Layout>
AFFNET_DEVICE void load_quads(Quad& a, Quad& b, const Rows& rows, const LanePlanes<Layout>& planes, int quad) {
  const uint32_t plane = planes.offset(quad, false);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const SingleRow& row = rows.row[r];
    const Complex<float> z = load_or_zero(row.exists, row.at + plane);
    const Complex<float> n = load_or_zero(row.exists, row.negative + plane);
    a.row[r] = {z.re + n.re, z.im - n.im};
    b.row[r] = {z.im + n.im, n.re - z.re};
  }
}

// The spectra of a plane's channels back to Z[f] and Z[-f].
template <typename Rows, typename Layout>
AFFNET_DEVICE void store_quads(const Quad& a, const Quad& b, const Rows& rows, const LanePlanes<Layout>& planes,
                               int quad) {
  const uint32_t plane = planes.offset(quad, false);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Complex<float>&p = a.row[r], &q = b.row[r];
    if (rows.stores(r) && planes.exists(quad, false)) {
      shared_store(rows.row[r].at + plane, Complex<float>{p.re - q.im, p.im + q.re});
      shared_store(rows.row[r].negative + plane, Complex<float>{p.re + q.im, q.re - p.im});
    }
  }
}

// The same for the last of an odd number of quads.
template <typename Rows, typename Layout>
AFFNET_DEVICE void load_last_quad(Quad& x, const Rows& rows, const LanePlanes<Layout>& planes, int quad) {
  const uint32_t plane = planes.offset(quad, true);
  const bool first = planes.t < 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const SingleRow& row = rows.row[r];
    const Complex<float> z = load_or_zero(row.exists, row.at + plane);
    const Complex<float> n = load_or_zero(row.exists, row.negative + plane);
    x.row[r] = {(first ? z.re : z.im) + (first ? n.re : n.im), (first ? z.im : n.re) - (first ? n.im : z.re)};
  }
}

// All quads of a lane.
template <int kQuads, typename Rows, typename Layout>
AFFNET_DEVICE void load_rows(Quad (&x)[kQuads], const Rows& rows, const LanePlanes<Layout>& planes) {
#pragma unroll
  for (int q = 0; q + 1 < kQuads; q += 2) load_quads(x[q], x[q + 1], rows, planes, q);
  if constexpr (kQuads % 2 == 1) load_last_quad(x[kQuads - 1], rows, planes, kQuads - 1);
}

// All lanes of a warp must call it. The first channel's lane stores Z[f] and the second one's Z[-f], after both lanes
// have read them: the caller puts a warp barrier between.
template <typename Rows, typename Layout>
AFFNET_DEVICE void store_last_quad(const Quad& y, const Rows& rows, const LanePlanes<Layout>& planes, int quad) {
  const uint32_t plane = planes.offset(quad, true);
  const bool first = planes.t < 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const SingleRow& row = rows.row[r];
    const Complex<float> own = y.row[r];
    const Complex<float> other = {shuffle_xor(own.re, 2), shuffle_xor(own.im, 2)};
    const Complex<float> value = {first ? own.re - other.im : other.re + own.im,
                                  first ? own.im + other.re : own.re - other.im};
    if (rows.stores(r) && planes.exists(quad, true) && (first || row.at != row.negative)) {
      shared_store((first ? row.at : row.negative) + plane, value);
    }
  }
}

}  // namespace affnet
