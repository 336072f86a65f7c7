#include "fft/plan.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

namespace affnet {
namespace {

// exp(-2 pi i k / n), reduced first so that large k lose nothing.
std::complex<double> root_of_unity(int64_t k, int64_t n) {
  const double turn = static_cast<double>(k % n) / static_cast<double>(n);
  return {std::cos(2 * M_PI * turn), -std::sin(2 * M_PI * turn)};
}

constexpr int kLargestRadix = 61;  // above, Bluestein's convolution is cheaper than a sum over all pairs

// The radices of a transform of n; empty if a prime factor is too large.
std::vector<int> radices_of(int n) {
  std::vector<int> radices;
  int twos = 0;
  for (; n % 2 == 0; n /= 2) ++twos;
  for (; twos > 4 || twos == 3; twos -= 3) radices.push_back(8);
  for (; twos >= 2; twos -= 2) radices.push_back(4);
  if (twos == 1) radices.push_back(2);
  for (int p = 3; n > 1; p += 2) {
    if (p > kLargestRadix) return {};
    for (; n % p == 0; n /= p) radices.push_back(p);
  }
  return radices;
}

bool is_codelet(int radix) { return radix <= 5 || radix == 7 || radix == 8 || radix == 11 || radix == 13; }

template <typename T>
void append(std::vector<T>& table, std::complex<double> value) {
  table.push_back(static_cast<T>(value.real()));
  table.push_back(static_cast<T>(value.imag()));
}

template <typename T>
class Tables {
 public:
  FftPlan<T> plan(int n) {
    FftPlan<T> plan{};
    plan.length = n;
    std::vector<int> radices = radices_of(n);
    if (n > 1 && radices.empty()) {
      plan_convolution(plan);
    } else {
      plan.steps = steps(n, radices);
      plan.work_length = n;
    }
    return plan;
  }

  const T* keep(std::vector<T> table) { return tables_.emplace_back(std::move(table)).data(); }
  const int* keep(std::vector<int> table) { return offsets_.emplace_back(std::move(table)).data(); }

 private:
  FftSteps<T> steps(int n, const std::vector<int>& radices) {
    FftSteps<T> steps{};
    steps.length = n;
    for (const int radix : radices) {
      std::vector<T> twiddles;
      for (int p = 0; p < n / radix; ++p) {
        for (int r = 0; r < radix; ++r) append(twiddles, root_of_unity(int64_t{p} * r, n));
      }
      for (int k = 0; !is_codelet(radix) && k < radix; ++k) append(twiddles, root_of_unity(k, radix));
      steps.radix[steps.count] = radix;
      steps.twiddles[steps.count++] = keep(std::move(twiddles));
      n /= radix;
    }
    return steps;
  }

  void plan_convolution(FftPlan<T>& plan) {
    const int n = plan.length;
    int m = 1;
    while (m < 2 * n - 1) m *= 2;
    std::vector<std::complex<double>> chirp(n), kernel(m);
    for (int64_t i = 0; i < n; ++i) {
      chirp[i] = root_of_unity(i * i, 2 * n);
      kernel[i] = kernel[i == 0 ? 0 : m - i] = std::conj(chirp[i]);
    }
    transform(kernel);
    std::vector<T> chirp_table, spectrum_table;
    for (const auto& value : chirp) append(chirp_table, value);
    for (const auto& value : kernel) append(spectrum_table, value / static_cast<double>(m));
    plan.chirp = keep(std::move(chirp_table));
    plan.chirp_spectrum = keep(std::move(spectrum_table));
    plan.steps = steps(m, radices_of(m));
    plan.work_length = m;
  }

  // In place, of a power of two, in float64.
  static void transform(std::vector<std::complex<double>>& z) {
    const size_t n = z.size();
    if (n == 1) return;
    std::vector<std::complex<double>> even(n / 2), odd(n / 2);
    for (size_t i = 0; i < n / 2; ++i) even[i] = z[2 * i], odd[i] = z[2 * i + 1];
    transform(even);
    transform(odd);
    for (size_t i = 0; i < n / 2; ++i) {
      const auto turned = odd[i] * root_of_unity(static_cast<int64_t>(i), static_cast<int64_t>(n));
      z[i] = even[i] + turned;
      z[i + n / 2] = even[i] - turned;
    }
  }

  std::deque<std::vector<T>> tables_;
  std::deque<std::vector<int>> offsets_;
};

int round_up(int value, int to) { return (value + to - 1) / to * to; }

// Lanes that a row of a small image takes: a vector or half of one, so that it needs no copy to share vectors.
int64_t pitch_of(int64_t width, int lanes) {
  if (width < lanes && 2 * width > lanes) return lanes;
  if (2 * width < lanes && 4 * width > lanes) return lanes / 2;
  return width;
}

template <typename T>
struct OwnedGeometry {
  Geometry<T> geometry{};
  Tables<T> tables;

  OwnedGeometry(int height, int width, int images, int lanes) {
    Geometry<T>& g = geometry;
    g.height = height, g.width = width, g.images = images;
    g.pitch = images == 1 ? width : static_cast<int>(pitch_of(width, lanes));
    g.pairs = (images * g.pitch + 1) / 2;
    // Loads and stores reach up to a vector beyond the last column.
    g.staging_stride = round_up(2 * g.pairs + lanes, lanes);
    g.row_stride = round_up(2 * g.pairs + lanes, lanes);
    if (g.row_stride % (8 * lanes) == 0) g.row_stride += lanes;  // rows a power of two apart share cache sets
    const int half = (height + 1) / 2;
    const bool even = height % 2 == 0;
    std::vector<int> re, im;
    std::vector<T> shared;
    const auto add = [&](int from, int to, bool is_shared) {
      re.push_back(from), im.push_back(to), shared.push_back(is_shared ? 1 : 0);
    };
    for (int image = 0; image < images; ++image) {
      for (int kh = even ? 0 : 1; kh < (even ? height / 2 : half); ++kh) {
        const int row = 2 * kh * g.row_stride + image * g.pitch;
        add(row, row + g.row_stride, even && kh == 0);
      }
    }
    for (int image = 0; !even && image < (images + 1) / 2; ++image) {
      const int partner = images == 1 ? g.row_stride : (image + images / 2) * g.pitch;
      add(image * g.pitch, partner, true);
    }
    g.rows = static_cast<int>(re.size());
    while (re.size() % lanes != 0) add(re[0], im[0], shared[0] != 0);
    g.slots = (width / 2 + 1) * 2 * g.rows;
    g.slot_stride = round_up(g.slots, lanes) + lanes;
    if (g.slot_stride % (16 * lanes) == 0) g.slot_stride += lanes;
    g.row_re = tables.keep(std::move(re));
    g.row_im = tables.keep(std::move(im));
    g.row_shared = tables.keep(std::move(shared));
    g.column_fft = tables.plan(height);
    g.row_fft = tables.plan(width);
  }
};

}  // namespace

int choose_images_log2(int64_t batch, int64_t height, int64_t width, int64_t size, int lanes, size_t value_bytes) {
  constexpr int64_t kTileBytes = 256 << 10;
  int best = 0;
  double best_cost = 0;
  for (int log2 = 0; log2 <= kMaxImagesLog2 && (int64_t{1} << log2) <= batch; ++log2) {
    const int64_t images = int64_t{1} << log2;
    if (log2 > 0 && images * height * (width / 2 + 1) * size * 2 * static_cast<int64_t>(value_bytes) > kTileBytes)
      break;
    const int64_t columns = log2 == 0 ? (width + 1) / 2 : images / 2 * pitch_of(width, lanes),
                  rows = (images * height + 1) / 2;
    const auto blocks = [&](int64_t count) { return (count + lanes - 1) / lanes; };
    const double cost =
        static_cast<double>(blocks(columns) * height + blocks(rows) * width) / static_cast<double>(images);
    if (log2 == 0 || cost < best_cost) best = log2, best_cost = cost;
  }
  return best;
}

template <typename T>
std::shared_ptr<const Geometry<T>> geometry_of(int64_t height, int64_t width, int images, int lanes) {
  using Key = std::tuple<int64_t, int64_t, int, int>;
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const OwnedGeometry<T>>> kept;
  constexpr size_t kMost = 256;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& entry = kept[{height, width, images, lanes}];
  if (!entry) {
    entry = std::make_shared<const OwnedGeometry<T>>(static_cast<int>(height), static_cast<int>(width), images, lanes);
  }
  const auto owner = entry;
  if (kept.size() > kMost) kept.clear();
  return {owner, &owner->geometry};
}

template std::shared_ptr<const Geometry<float>> geometry_of(int64_t, int64_t, int, int);
template std::shared_ptr<const Geometry<double>> geometry_of(int64_t, int64_t, int, int);

}  // namespace affnet
