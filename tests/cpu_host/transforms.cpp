// Checks the CPU kernel's transforms, shuffles and conversions, each on its own, against plain loops in double; the
// argument names the check. Compiled once for each instruction set, see tests/test_cpu_host.py.
#include <algorithm>
#include <cmath>
#include <complex>
#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "check.h"
#include "fft/layout.h"
#include "fft/long_fft.h"
#include "fft/planner.h"
#include "simd/half.h"

namespace affnet::AFFNET_CAPABILITY {
namespace {

using Complex = std::complex<double>;

std::vector<Complex> roots_of(int n) {
  std::vector<Complex> roots(n);
  for (int k = 0; k < n; ++k) roots[k] = std::polar(1.0, -2 * M_PI * k / n);
  return roots;
}

std::vector<Complex> naive_dft(const std::vector<Complex>& x) {
  const size_t n = x.size();
  const auto roots = roots_of(static_cast<int>(n));
  std::vector<Complex> X(n);
  for (size_t k = 0; k < n; ++k) {
    for (size_t i = 0; i < n; ++i) X[k] += x[i] * roots[i * k % n];
  }
  return X;
}

// Complex vectors, a different signal in each lane.
template <typename T>
struct Signals {
  std::vector<Vec<T>> re, im;

  explicit Signals(int length) : re(length), im(length) {}
  void randomize() {
    for (auto* part : {&re, &im}) {
      for (Vec<T>& v : *part) {
        for (int l = 0; l < Vec<T>::kLanes; ++l) v.raw[l] = static_cast<T>(random_number());
      }
    }
  }
  std::vector<Complex> lane(int l, int length) const {
    std::vector<Complex> values(length);
    for (int i = 0; i < length; ++i) values[i] = {re[i].raw[l], im[i].raw[l]};
    return values;
  }
  Signal<T> signal() { return {re.data(), im.data()}; }
};

// Relative L2 error that a transform may have: some roundings.
template <typename T>
constexpr double kBound = sizeof(T) == 4 ? 5e-7 : 3e-15;

template <typename T>
void expect_dft(const Signals<T>& x, const Signals<T>& X, int n, const char* what, int lanes = Vec<T>::kLanes) {
  for (int l = 0; l < lanes; ++l) {
    const auto expected = naive_dft(x.lane(l, n)), got = X.lane(l, n);
    double error = 0, size = 0;
    for (int k = 0; k < n; ++k) error += std::norm(got[k] - expected[k]), size += std::norm(expected[k]);
    expect(std::sqrt(error / size) < kBound<T>,
           "%s of length %d, %zu-byte numbers, lane %d: expected error < %g, got %g", what, n, sizeof(T), l, kBound<T>,
           std::sqrt(error / size));
  }
}

template <int N, typename T>
void check_codelet() {
  Signals<T> x(N), X(N);
  x.randomize();
  constexpr Order<N> order;
  std::vector<int> outputs;
  dft<N>(
      Vec<T>(T(1)), [&](auto n, Vec<T>& re, Vec<T>& im) { re = x.re[n], im = x.im[n]; },
      [&](auto k, Vec<T> re, Vec<T> im) {
        X.re[k] = re, X.im[k] = im;
        outputs.push_back(k);
      });
  expect_dft(x, X, N, "codelet");
  expect(outputs.size() == N, "codelet of length %d: expected every output once", N);
  for (int i = 0; i < N; ++i) {
    expect(order.rank[outputs[i]] == i, "codelet of length %d: expected output %d at rank %d, got %d", N, outputs[i],
           order.rank[outputs[i]], i);
  }
}

template <typename T, int... N>
void check_codelets(std::integer_sequence<int, N...>) {
  (check_codelet<N, T>(), ...);
}

void codelets() {
  check_codelets<float>(std::integer_sequence<int, 2, 3, 4, 5, 7, 8, 10, 11, 13, 14, 16, 20, 28, 32>{});
  check_codelets<double>(std::integer_sequence<int, 3, 4, 13, 20>{});
}

template <typename T>
FftMethod check_plan(int n, int lanes) {
  FftPlanner<T> planner;
  const FftPlan<T> plan = planner.plan(n);
  expect(plan.length == n && plan.work_length >= n, "a plan of length %d", n);
  Signals<T> data(plan.work_length), work(plan.work_length);
  data.randomize();
  const Signals<T> x = data;
  Signal<T> z = fft(plan, data.signal(), work.signal());
  expect_dft(x, z.re == data.re.data() ? data : work, n, "plan", lanes);
  // The inverse exchanges re and im.
  const Signal<T> other = z.re == data.re.data() ? work.signal() : data.signal();
  z = fft(plan, z.swapped(), other.swapped()).swapped();
  double error = 0;
  for (int i = 0; i < n; ++i) error = std::max<double>(error, std::abs(z.re[i].raw[0] / n - x.re[i].raw[0]));
  expect(error < 20 * kBound<T>, "inverse of length %d: expected error < %g, got %g", n, 20 * kBound<T>, error);
  return plan.method;
}

void plans_to_200() {
  std::set<FftMethod> methods;
  for (int n = 1; n <= 200; ++n) {
    methods.insert(check_plan<float>(n, 1));
    check_plan<double>(n, 1);
  }
  for (const auto method : {FftMethod::kSteps, FftMethod::kDirect, FftMethod::kRader, FftMethod::kBluestein}) {
    expect(methods.count(method) > 0, "some length up to 200 by method %d", static_cast<int>(method));
  }
  check_plan<float>(17, Vec<float>::kLanes), check_plan<float>(107, Vec<float>::kLanes);
}

void long_plans() {
  for (const int n : {257, 402, 511, 777, 1009, 1024, 1440, 2047, 3481, 4096, 4099}) {
    check_plan<float>(n, 1), check_plan<double>(n, 1);
  }
}

template <typename T>
void check_long_plan(int n) {
  constexpr int L = Vec<T>::kLanes;
  FftPlanner<T> planner;
  const LongPlan<T> plan = planner.long_plan(n, L);
  const int length = std::max(plan.first_fft.work_length, plan.second_fft.work_length);
  Signals<T> data(length), work(length);
  TransformScratch<T> scratch{};
  scratch.fft[0] = data.re.data(), scratch.fft[1] = data.im.data();
  scratch.fft[2] = work.re.data(), scratch.fft[3] = work.im.data();
  std::vector<T> memory[6];
  for (auto& part : memory) part.resize(long_buffer(plan));
  const Parts<T> buffers[3] = {
      {memory[0].data(), memory[1].data()}, {memory[2].data(), memory[3].data()}, {memory[4].data(), memory[5].data()}};
  std::vector<Complex> x(n);
  for (int i = 0; i < n; ++i) {
    buffers[1].re[i] = static_cast<T>(random_number()), buffers[1].im[i] = static_cast<T>(random_number());
    x[i] = {buffers[1].re[i], buffers[1].im[i]};
  }
  long_fft<T>(plan, buffers[1], buffers, scratch);
  const auto expected = naive_dft(x);
  double error = 0, size = 0;
  for (int k = 0; k < n; ++k) {
    error += std::norm(Complex(buffers[0].re[k], buffers[0].im[k]) - expected[k]), size += std::norm(expected[k]);
  }
  expect(std::sqrt(error / size) < kBound<T>, "long plan of %d = %d x %d or by them: expected error < %g, got %g", n,
         plan.first, plan.second, kBound<T>, std::sqrt(error / size));
}

void long_signals() {
  expect(std::isinf(long_fft_cost(Vec<float>::kLanes - 1, Vec<float>::kLanes)),
         "no plan for fewer elements than lanes");
  for (const int n : {16, 17, 64, 100, 256, 289, 509, 640, 777, 1024, 1021, 4096, 4099}) {
    check_long_plan<float>(n), check_long_plan<double>(n);
  }
}

template <typename T>
std::vector<Vec<T>> numbered(int rows) {
  std::vector<Vec<T>> vectors(rows);
  for (int i = 0; i < rows; ++i) {
    for (int l = 0; l < Vec<T>::kLanes; ++l) vectors[i].raw[l] = static_cast<T>(100 * i + l);
  }
  return vectors;
}

template <typename T>
void check_transposes() {
  constexpr int L = Vec<T>::kLanes;
  auto rows = numbered<T>(L);
  transpose(rows.data());
  for (int i = 0; i < L; ++i) {
    for (int l = 0; l < L; ++l) expect(rows[i].raw[l] == 100 * l + i, "transpose of %d: row %d, lane %d", L, i, l);
  }
  if constexpr (L == 16) {
    rows = numbered<T>(8);  // lane l of row i: element l % 8 of row i + l / 8 * 8
    transpose_halves(rows.data());
    for (int i = 0; i < 8; ++i) {
      for (int l = 0; l < L; ++l) {
        expect(rows[i].raw[l] == 100 * (l % 8) + l / 8 * 8 + i, "transpose_halves: row %d, lane %d", i, l);
      }
    }
  }
}

template <typename T>
void check_sums() {
  constexpr int L = Vec<T>::kLanes;
  auto rows = numbered<T>(L);
  const Vec<T> sums = sum_lanes(rows.data());
  for (int i = 0; i < L; ++i) expect(sums.raw[i] == 100 * i * L + L * (L - 1) / 2, "sum_lanes of %d: row %d", L, i);
}

void shuffles() {
  check_transposes<float>(), check_transposes<double>();
  check_sums<float>(), check_sums<double>();
}

// Rows of `width` at scattered places, to vectors and back, `count` of them written.
template <int N, typename T>
void check_rows(int width, int count) {
  constexpr int L = Vec<T>::kLanes;
  const int distance = width + 3;
  std::vector<T> from(L * distance + L), to(from.size(), T(-1));
  std::iota(from.begin(), from.end(), T(0));
  int offsets[L];
  for (int l = 0; l < L; ++l) offsets[l] = (l * 5 + 2) % L * distance;
  std::vector<Vec<T>> z(std::max(width, L));
  gather_rows<N>(z.data(), from.data(), offsets, width);
  for (int w = 0; w < width; ++w) {
    for (int l = 0; l < L; ++l) {
      expect(z[w].raw[l] == from[offsets[l] + w], "gather_rows of width %d: lane %d, element %d", width, l, w);
    }
  }
  scatter_rows<N>(z.data(), to.data(), offsets, count, width);
  // The straight-line code may write up to the vector's end beyond a short row.
  const int beyond = N > 0 && width < L ? distance - width : 0;
  for (int l = 0; l < L; ++l) {
    for (int w = 0; w < distance - beyond; ++w) {
      const bool written = l < count && w < width;
      expect(to[offsets[l] + w] == (written ? from[offsets[l] + w] : T(-1)),
             "scatter_rows of width %d, %d rows: lane %d, element %d", width, count, l, w);
    }
  }
}

template <typename T>
void check_all_rows() {
  constexpr int L = Vec<T>::kLanes;
  for (int width = 1; width <= 40; ++width) {
    for (const int count : {1, 2, L - 1, L}) check_rows<0, T>(width, count);
  }
  check_rows<7, T>(7, L - 1), check_rows<7, T>(7, L), check_rows<8, T>(8, L), check_rows<16, T>(16, L);
  check_rows<20, T>(20, L);
}

void rows() { check_all_rows<float>(), check_all_rows<double>(); }

// The value of a float16, from its definition.
double value_of_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}
double value_of_bfloat16(uint16_t bits) {
  const int exponent = bits >> 7 & 255, fraction = bits & 127;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 255) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -133) : std::ldexp(128 + fraction, exponent - 134));
}

template <typename Element>
Element narrowed(float value) {
  Element elements[Vec<float>::kLanes];
  store_as(Vec<float>(value), elements, Vec<float>::kLanes);
  return elements[Vec<float>::kLanes - 1];
}

// Every number exactly; what lies between two neighbours to the nearer one, and halfway to the even one.
template <typename Element>
void check_conversions(const char* name, double (*value_of)(uint16_t), uint16_t infinity) {
  constexpr int L = Vec<float>::kLanes;
  for (int bits = 0; bits < 1 << 16; ++bits) {
    Element elements[L] = {};
    const int lane = bits % L;
    elements[lane].bits = static_cast<uint16_t>(bits);
    const float got = load_as<float>(elements, lane + 1).raw[lane];
    const double expected = value_of(static_cast<uint16_t>(bits));
    const bool both_nan = std::isnan(got) && std::isnan(expected);
    expect(both_nan || (got == expected && std::signbit(got) == std::signbit(expected)), "%s %04x: expected %g, got %g",
           name, bits, expected, got);
    const uint16_t again = narrowed<Element>(got).bits;
    expect(std::isnan(expected) ? std::isnan(value_of(again)) : again == bits, "%s %04x back, got %04x", name, bits,
           again);
  }
  for (uint16_t low = 0; low < infinity - 1; ++low) {
    const double a = value_of(low), b = value_of(static_cast<uint16_t>(low + 1));
    const auto middle = static_cast<float>((a + b) / 2);
    const uint16_t even = low % 2 == 0 ? low : static_cast<uint16_t>(low + 1);
    expect(narrowed<Element>(middle).bits == even, "%s: expected the middle above %04x to go to the even one", name,
           low);
    expect(narrowed<Element>(std::nextafterf(middle, 0)).bits == low, "%s: expected %04x from above", name, low);
    expect(narrowed<Element>(std::nextafterf(middle, INFINITY)).bits == low + 1, "%s: expected %04x from below", name,
           low + 1);
  }
  expect(narrowed<Element>(INFINITY).bits == infinity && narrowed<Element>(3.4e38f).bits == infinity,
         "%s: expected what is too large to become infinity", name);
}

void conversions() {
  check_conversions<Float16>("float16", value_of_float16, 0x7c00);
  check_conversions<BFloat16>("bfloat16", value_of_bfloat16, 0x7f80);
}

// Each slot of each channel is written by exactly one lane of one row.
void layouts() {
  constexpr int L = Vec<float>::kLanes;
  int thin = 0;
  for (const int batch : {1, 2, 5, 8}) {
    for (const int size : {1, 2, 5, 8, 13, 40}) {
      for (const auto& [height, width] : {std::pair{1, 64},
                                          {1, 7},
                                          {64, 1},
                                          {7, 1},
                                          {1, 1},
                                          {2, 50},
                                          {3, 77},
                                          {5, 2},
                                          {97, 3},
                                          {3, 3},
                                          {8, 8},
                                          {32, 32},
                                          {1, 1024},
                                          {1023, 1}}) {
        const auto layout = tile_layout<float>(batch, height, width, size, L);
        expect(1 << layout->images_log2 <= batch, "no more images than the batch of %d", batch);
        for (int log2 = 0; log2 <= layout->images_log2; ++log2) {
          const Geometry<float>& g = *layout->geometry[log2];
          expect(g.images == 1 << log2 && g.channels >= 1 && g.channels <= size, "%d x %d: images and channels", height,
                 width);
          if (!g.runs) continue;
          ++thin;
          const int frequencies = g.width / 2 + 1;
          expect(g.slots == g.images * height * (width / 2 + 1), "%d x %d: a slot for each frequency", height, width);
          std::vector<int> writers(g.channels * 2 * g.slot_stride);
          const auto write = [&](int start, int length) {
            for (int i = 0; i < length; ++i) ++writers[start + i];
          };
          for (int row = 0; row < g.rows; ++row) {
            const bool lone = g.run_first[row] == g.run_second[row];
            write(g.run_first[row], frequencies);
            if (!lone) write(g.run_second[row], frequencies);
            if (!g.mirrored) continue;
            write(g.mirrored_first[row], g.width - frequencies);
            if (!lone) write(g.mirrored_second[row], g.width - frequencies);
          }
          for (size_t i = 0; i < writers.size(); ++i) {
            const int expected = static_cast<int>(i) % (2 * g.slot_stride) < g.slots ? 1 : 0;
            expect(writers[i] == expected, "%d x %d, %d images, %d channels: slot %zu written once, got %d", height,
                   width, g.images, g.channels, i, writers[i]);
          }
        }
      }
    }
  }
  expect(thin > 0, "some map to be thin");
}

const Check kChecks[] = {
    {"codelets", codelets},         {"plans_to_200", plans_to_200}, {"long_plans", long_plans},
    {"long_signals", long_signals}, {"shuffles", shuffles},         {"rows", rows},
    {"conversions", conversions},   {"layouts", layouts},
};

}  // namespace
}  // namespace affnet::AFFNET_CAPABILITY

int main(int argc, char** argv) { return run_named(affnet::AFFNET_CAPABILITY::kChecks, argc, argv); }
