#include "fft/layout.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "fft/planner.h"

namespace affnet {
namespace {

int round_up(int value, int to) { return (value + to - 1) / to * to; }
int64_t vectors_of(int64_t count, int64_t lanes) { return (count + lanes - 1) / lanes; }

// The lanes that a row of a small image occupies: rounded up to a vector or half of one where that lets rows of several
// images be loaded into one vector without a copy.
int64_t pitch_of(int64_t width, int lanes) {
  if (width < lanes && 2 * width > lanes) return lanes;
  if (2 * width < lanes && 4 * width > lanes) return lanes / 2;
  return width;
}

// What the lanes of a vector are when the columns or the rows of several channels are transformed together: several
// signals, one in each lane, or the elements of a single one.
enum class Lanes { kOfSeveral, kOfOne };

struct Grouping {
  int64_t channels;
  bool runs;  // else each channel alone
  Lanes columns, rows;
  double cost;  // per plane
};

// Estimated cycles of the transforms of maps of one size.
class CostModel {
 public:
  CostModel(int64_t height, int64_t width, bool runs, int64_t lanes)
      : height_(height), width_(width), runs_(runs), lanes_(lanes) {
    if (runs && width == 1) std::swap(height_, width_);
    const auto h = static_cast<double>(height_), w = static_cast<double>(width_);
    const auto transposed = [&](int64_t count) {
      return kTransposeCost * static_cast<double>(vectors(count) * lanes_);
    };
    column_ = in_cache(height_) + kPairCost * h;
    row_ = in_cache(width_) + kPairCost * w + 2 * transposed(width_);
    if (!runs) return;
    row_ += 4 * transposed(width_ / 2 + 1);
    long_column_ = long_fft_cost(height_, lanes) + kLongColumnCost * h;
    long_row_ = long_fft_cost(width_, lanes) + kLongRowCost * w;
  }

  // For `channels` channels, 1 unless runs, of `images` images.
  Grouping grouping(int64_t images, int64_t channels) const {
    const int64_t planes = images * channels;
    const int64_t pitch = runs_ || images == 1 ? width_ : pitch_of(width_, static_cast<int>(lanes_));
    const int64_t pairs = (planes * pitch + 1) / 2, rows = (planes * height_ + 1) / 2;
    Grouping grouping{channels, runs_, Lanes::kOfSeveral, Lanes::kOfSeveral, 0};
    const auto choose = [&](Lanes& choice, int64_t count, double in_lanes, double alone) {
      in_lanes *= static_cast<double>(vectors(count)), alone *= static_cast<double>(count);
      if (runs_ && alone < in_lanes) choice = Lanes::kOfOne;
      return choice == Lanes::kOfOne ? alone : in_lanes;
    };
    double cost = choose(grouping.columns, pairs, column_, long_column_) + choose(grouping.rows, rows, row_, long_row_);
    if (runs_) cost += kStageCost * static_cast<double>(planes * height_ * width_);
    if (!runs_ && is_straight(height_) && is_straight(width_)) cost *= kStraightFactor;
    grouping.cost = cost / static_cast<double>(planes);
    return grouping;
  }

 private:
  static constexpr double kPairCost = 6;           // of loading and storing a complex vector around its transform
  static constexpr double kTransposeCost = 7;      // of a vector
  static constexpr double kStraightFactor = 0.75;  // of straight-line code to loops
  static constexpr double kStageCost = 0.5;        // of an element
  static constexpr double kLongRowCost = 2;        // of splitting an element's spectrum into runs
  static constexpr double kLongColumnCost = 8;     // the same; columns are gathered and scattered one element at a time

  // The cost of a transform of n vectors, which is higher where its buffers outgrow the first or second cache level.
  static double in_cache(int64_t n) { return fft_cost(n) * (n > 2048 ? 3 : n > 128 ? 1.3 : 1); }
  static bool is_straight(int64_t n) {
    return std::find(std::begin(kStraightLengths), std::end(kStraightLengths), n) != std::end(kStraightLengths);
  }
  int64_t vectors(int64_t count) const { return vectors_of(count, lanes_); }

  int64_t height_, width_;
  bool runs_;
  int64_t lanes_;
  double column_ = 0, row_ = 0, long_column_ = 0, long_row_ = 0;
};

// The cheapest way to transform a block's `size` channels.
Grouping choose_grouping(int64_t height, int64_t width, int64_t images, int64_t size, int lanes) {
  constexpr int64_t kMostElements = 1 << 28;  // offsets are ints
  Grouping best = CostModel(height, width, false, lanes).grouping(images, 1);
  if (height > 1 && width > 1 && images * std::min(height, width) >= 2 * lanes) return best;
  const CostModel model(height, width, true, lanes);
  for (int64_t channels = 1; channels <= std::min<int64_t>(size, 2 * lanes); ++channels) {
    if (channels > 1 && images * channels * height * width > kMostElements) break;
    Grouping grouping = model.grouping(images, channels);
    const int64_t groups = vectors_of(size, channels);  // the last overlaps the one before it
    grouping.cost *= static_cast<double>(groups * channels) / static_cast<double>(size);
    if (grouping.cost < best.cost) best = grouping;
  }
  return best;
}

template <typename T>
class OwnedGeometry {
 public:
  Geometry<T> geometry{};

  OwnedGeometry(int height, int width, int images, const Grouping& grouping, int lanes) : lanes_(lanes) {
    Geometry<T>& g = geometry;
    g.channels = static_cast<int>(grouping.channels), g.runs = grouping.runs;
    g.mirrored = g.runs && width == 1 && height > 1;
    if (g.mirrored) std::swap(height, width);
    g.height = height, g.width = width, g.images = images;
    g.pitch = g.runs || images == 1 ? width : static_cast<int>(pitch_of(width, lanes));
    g.pairs = (g.planes() * g.pitch + 1) / 2;
    // Loads and stores reach up to a vector beyond the last column.
    g.staging_stride = round_up(2 * g.pairs + lanes, lanes);
    g.row_stride = round_up(2 * g.pairs + lanes, lanes);
    if (g.row_stride % (8 * lanes) == 0) g.row_stride += lanes;  // rows a power of two apart share cache sets
    const int frequencies = width / 2 + 1;
    const int slots_of_image = g.mirrored ? width : g.runs ? height * frequencies : 0;
    g.slots = slots_of_image * images;
    const std::vector<Row> rows = rows_of(g);
    g.rows = static_cast<int>(rows.size());
    if (!g.runs) g.slots = frequencies * 2 * g.rows;
    g.slot_stride = round_up(g.slots, lanes) + lanes;
    if (g.slot_stride % (16 * lanes) == 0) g.slot_stride += lanes;
    fill_tables(rows);
    if (grouping.columns == Lanes::kOfOne) {
      g.long_column_fft = planner_.long_plan(height, lanes);
    } else {
      g.column_fft = planner_.plan(height);
    }
    if (grouping.rows == Lanes::kOfOne) {
      g.long_row_fft = planner_.long_plan(width, lanes);
    } else {
      g.row_fft = planner_.plan(width);
    }
  }

 private:
  struct Row {
    int re, im;  // offsets in the row buffer
    bool shared;
    int first_plane, first_run, second_plane, second_run;
  };

  static std::vector<Row> rows_of(const Geometry<T>& g) {
    std::vector<Row> rows;
    const int part = g.row_stride, planes = g.planes(), height = g.height;
    const bool even = height % 2 == 0;
    for (int plane = 0; plane < planes; ++plane) {
      for (int kh = even ? 0 : 1; kh < (height + 1) / 2; ++kh) {
        const int row = 2 * kh * part + plane * g.pitch;
        rows.push_back({row, row + part, kh == 0, plane, kh, plane, kh == 0 ? height / 2 : height - kh});
      }
    }
    for (int plane = 0; !even && plane < (planes + 1) / 2; ++plane) {
      const bool lone = planes % 2 != 0 && plane == planes / 2;
      const int partner = lone ? plane : plane + (planes + 1) / 2;
      rows.push_back({plane * g.pitch, lone ? part : partner * g.pitch, true, plane, 0, partner, 0});
    }
    return rows;
  }

  void fill_tables(const std::vector<Row>& rows) {
    Geometry<T>& g = geometry;
    const int frequencies = g.width / 2 + 1, mirrored_frequencies = g.width - frequencies;
    const auto channel_of = [&](int plane) { return plane % g.channels * 2 * g.slot_stride; };
    const auto run_at = [&](int plane, int run) {
      return channel_of(plane) + (plane / g.channels * g.height + run) * frequencies;
    };
    const auto mirrored_at = [&](int plane) {
      return channel_of(plane) + g.images * frequencies + plane / g.channels * mirrored_frequencies;
    };
    const auto table = [&](auto value_of) {
      using Value = decltype(value_of(rows[0]));
      std::vector<Value> values;
      for (const Row& row : rows) values.push_back(value_of(row));
      while (values.size() % lanes_ != 0) values.push_back(values[0]);
      return values;
    };
    const auto keep = [&](auto value_of) { return offsets_.emplace_back(table(value_of)).data(); };
    g.row_re = keep([](const Row& row) { return row.re; });
    g.row_im = keep([](const Row& row) { return row.im; });
    shared_ = table([](const Row& row) { return row.shared ? T(1) : T(0); });
    g.row_shared = shared_.data();
    if (!g.runs) return;
    g.run_first = keep([&](const Row& row) { return run_at(row.first_plane, row.first_run); });
    g.run_second = keep([&](const Row& row) { return run_at(row.second_plane, row.second_run); });
    if (!g.mirrored) return;
    g.mirrored_first = keep([&](const Row& row) { return mirrored_at(row.first_plane); });
    g.mirrored_second = keep([&](const Row& row) { return mirrored_at(row.second_plane); });
  }

  int lanes_;
  FftPlanner<T> planner_;
  std::deque<std::vector<int>> offsets_;
  std::vector<T> shared_;
};

// How many images, as a power of two, a tile holds: enough for their columns and rows to fill the lanes, and few enough
// for the tile to stay in the cache.
int choose_images_log2(int64_t batch, int64_t height, int64_t width, int64_t size, int lanes, size_t value_bytes) {
  constexpr int64_t kTileBytes = 256 << 10;
  int best = 0;
  double best_cost = 0;
  for (int log2 = 0; log2 <= kMaxImagesLog2 && (int64_t{1} << log2) <= batch; ++log2) {
    const int64_t images = int64_t{1} << log2;
    if (log2 > 0 && images * height * (width / 2 + 1) * size * 2 * static_cast<int64_t>(value_bytes) > kTileBytes)
      break;
    const double cost = choose_grouping(height, width, images, size, lanes).cost;
    if (log2 == 0 || cost < best_cost) best = log2, best_cost = cost;
  }
  return best;
}

}  // namespace

template <typename T>
std::shared_ptr<const TileLayout<T>> tile_layout(int64_t batch, int64_t height, int64_t width, int64_t size,
                                                 int lanes) {
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int>;
  struct Owner {
    TileLayout<T> layout;
    std::deque<OwnedGeometry<T>> geometries;
  };
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Owner>> kept;
  constexpr size_t kMost = 256;
  batch = std::min<int64_t>(batch, 1 << kMaxImagesLog2);
  const std::lock_guard<std::mutex> lock(mutex);
  auto& entry = kept[{batch, height, width, size, lanes}];
  if (!entry) {
    const auto made = std::make_shared<Owner>();
    TileLayout<T>& layout = made->layout;
    const auto make = [&](int images, const Grouping& grouping) {
      return &made->geometries.emplace_back(static_cast<int>(height), static_cast<int>(width), images, grouping, lanes)
                  .geometry;
    };
    layout.images_log2 = choose_images_log2(batch, height, width, size, lanes, sizeof(T));
    for (int i = 0; i <= layout.images_log2; ++i) {
      layout.geometry[i] = make(1 << i, choose_grouping(height, width, 1 << i, size, lanes));
    }
    const bool alone = layout.geometry[0]->channels == 1;
    layout.alone = alone ? layout.geometry[0] : make(1, choose_grouping(height, width, 1, 1, lanes));
    entry = made;
  }
  const auto owner = entry;
  if (kept.size() > kMost) kept.clear();
  return {owner, &owner->layout};
}

template std::shared_ptr<const TileLayout<float>> tile_layout(int64_t, int64_t, int64_t, int64_t, int);
template std::shared_ptr<const TileLayout<double>> tile_layout(int64_t, int64_t, int64_t, int64_t, int);

}  // namespace affnet
