#include "fft/planner.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

namespace affnet {
namespace {

using Complex = std::complex<double>;

// exp(-2 pi i k / n), with k reduced modulo n first so that a large k costs no accuracy.
Complex root_of_unity(int64_t k, int64_t n) {
  const double turn = static_cast<double>(k % n) / static_cast<double>(n);
  return {std::cos(2 * M_PI * turn), -std::sin(2 * M_PI * turn)};
}

bool is_codelet(int radix) {
  return std::any_of(std::begin(kCodelets), std::end(kCodelets), [&](Codelet c) { return c.radix == radix; });
}

double codelet_cost(int radix) {
  return std::find_if(std::begin(kCodelets), std::end(kCodelets), [&](Codelet c) { return c.radix == radix; })->cycles;
}

// The radices of a transform of length n: 8, 4 and 2 first, then the odd prime factors of n in ascending order.
std::vector<int> radices_of(int64_t n) {
  std::vector<int> radices;
  int twos = 0;
  for (; n % 2 == 0; n /= 2) ++twos;
  for (; twos > 4 || twos == 3; twos -= 3) radices.push_back(8);
  for (; twos >= 2; twos -= 2) radices.push_back(4);
  if (twos == 1) radices.push_back(2);
  for (int64_t p = 3; n > 1; p = p * p > n ? n : p + 2) {
    for (; n % p == 0; n /= p) radices.push_back(static_cast<int>(p));
  }
  return radices;
}

bool is_smooth(int64_t n) {
  for (const int p : {2, 3, 5, 7, 11, 13}) {
    while (n % p == 0) n /= p;
  }
  return n == 1;
}

// The cost of a transform of length n if all its radices are codelets, else infinite.
double smooth_cost(int64_t n) {
  if (!is_smooth(n)) return std::numeric_limits<double>::infinity();
  double cost = 0;
  for (const int radix : radices_of(n)) cost += static_cast<double>(n / radix) * codelet_cost(radix);
  return cost;
}

// The cheapest length, which need not be the shortest, of Bluestein's convolution for a transform of length n.
int64_t bluestein_length(int64_t n) {
  int64_t power = 1;
  while (power < 2 * n - 1) power *= 2;
  int64_t best = power;
  double best_cost = smooth_cost(power);
  for (int64_t m = 2 * n - 1; m < power; ++m) {
    const double cost = smooth_cost(m);
    if (cost < best_cost) best = m, best_cost = cost;
  }
  return best;
}

constexpr double kCopyCost = 4;      // of loading, perhaps multiplying, and storing a complex vector
constexpr int kLongestDirect = 127;  // the table of a longer one would fill the first-level cache

struct Choice {
  FftMethod method;
  double cost;
};

// How a transform of an odd prime length without a codelet is computed.
Choice choose_for_prime(int64_t p) {
  const double length = static_cast<double>(p), half = (length - 1) / 2;
  const int64_t m = bluestein_length(p);
  Choice best{FftMethod::kBluestein, 2 * smooth_cost(m) + kCopyCost * (static_cast<double>(2 * m) + length)};
  const auto radices = radices_of(p - 1);
  if (*std::max_element(radices.begin(), radices.end()) <= kLongestDirect) {
    const double rader = 2 * fft_cost(p - 1) + 6 * kCopyCost * length;
    if (rader < best.cost) best = {FftMethod::kRader, rader};
  }
  const double direct = 3.5 * half * half + 2 * kCopyCost * length;
  if (p <= kLongestDirect && direct < best.cost) best = {FftMethod::kDirect, direct};
  return best;
}

// The matrix [first, second] that a long signal is treated as.
struct Factors {
  int64_t first = 0, second = 0;
  double cost = std::numeric_limits<double>::infinity();
};

constexpr double kTransposeCost = 7;  // of a vector that is one of those in a transpose

void consider(Factors& best, int64_t first, int64_t second, int64_t lanes) {
  const auto vectors = [&](int64_t count) { return static_cast<double>((count + lanes - 1) / lanes); };
  const auto a = static_cast<double>(first), b = static_cast<double>(second);
  const double cost = vectors(second) * (fft_cost(first) + 2 * kCopyCost * a) +
                      vectors(first) * (fft_cost(second) + (kCopyCost + 2 * kTransposeCost) * b);
  if (cost < best.cost) best = {first, second, cost};
}

// n as a product, or the length of Bluestein's convolution as one, whichever is cheaper.
Factors factors_of(int64_t n, int64_t lanes) {
  Factors exact;
  for (int64_t first = lanes; first <= n / lanes && first <= 4 * std::sqrt(n); ++first) {
    if (n % first == 0) consider(exact, first, n / first, lanes);
  }
  if (n < lanes) return exact;
  Factors convolution;
  const int64_t least = 2 * n - 1;
  for (int64_t first = lanes; first == lanes || first <= 2 * std::sqrt(least); ++first) {
    if (!is_smooth(first)) continue;
    int64_t second = std::max(lanes, (least + first - 1) / first);
    while (!is_smooth(second)) ++second;
    consider(convolution, first, second, lanes);
  }
  convolution.cost = 2 * convolution.cost + kCopyCost * 6 * static_cast<double>(least) / static_cast<double>(lanes);
  return exact.cost <= convolution.cost ? exact : convolution;
}

// A generator of the multiplicative group modulo the prime p.
int64_t generator_of(int64_t p) {
  const auto radices = radices_of(p - 1);
  const auto power = [p](int64_t base, int64_t exponent) {
    int64_t result = 1;
    for (; exponent > 0; exponent /= 2, base = base * base % p) {
      if (exponent % 2 != 0) result = result * base % p;
    }
    return result;
  };
  const auto generates = [&](int64_t g) {
    return std::all_of(radices.begin(), radices.end(), [&](int radix) {
      const int prime = radix % 2 == 0 ? 2 : radix;
      return power(g, (p - 1) / prime) != 1;
    });
  };
  int64_t g = 2;
  while (!generates(g)) ++g;
  return g;
}

// A transform in float64, for tables: split by the smallest prime factor.
std::vector<Complex> transform(const std::vector<Complex>& z) {
  const auto n = static_cast<int64_t>(z.size());
  int64_t p = 2;
  while (p * p <= n && n % p != 0) ++p;
  if (n % p != 0) p = n;
  if (n == 1) return z;
  const int64_t m = n / p;
  std::vector<std::vector<Complex>> parts;
  for (int64_t r = 0; r < p; ++r) {
    std::vector<Complex> part(m);
    for (int64_t i = 0; i < m; ++i) part[i] = z[i * p + r];
    parts.push_back(transform(part));
  }
  std::vector<Complex> roots(n), result(n);
  for (int64_t k = 0; k < n; ++k) roots[k] = root_of_unity(k, n);
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t r = 0; r < p; ++r) result[k] += parts[r][k % m] * roots[r * k % n];
  }
  return result;
}

// Bluestein's chirp [n] and the kernel [m] of its convolution, the conjugate chirp continued to both sides of 0.
std::pair<std::vector<Complex>, std::vector<Complex>> chirp_and_kernel(int64_t n, int64_t m) {
  std::vector<Complex> chirp(n), kernel(m);
  for (int64_t i = 0; i < n; ++i) {
    chirp[i] = root_of_unity(i * i, 2 * n);
    kernel[i] = kernel[i == 0 ? 0 : m - i] = std::conj(chirp[i]);
  }
  return {chirp, kernel};
}

}  // namespace

double fft_cost(int64_t n) {
  double cost = 0;
  for (const int radix : n > 1 ? radices_of(n) : std::vector<int>{}) {
    const double butterfly = is_codelet(radix) ? codelet_cost(radix)
                                               : choose_for_prime(radix).cost + (radix < n ? 2 * kCopyCost * radix : 0);
    cost += static_cast<double>(n / radix) * butterfly;
  }
  return cost;
}

double long_fft_cost(int64_t n, int64_t lanes) { return factors_of(n, lanes).cost; }

template <typename T>
FftPlan<T> FftPlanner<T>::plan(int n) {
  FftPlan<T> plan{};
  plan.length = n;
  const std::vector<int> radices = n > 1 ? radices_of(n) : std::vector<int>{};
  plan.method = FftMethod::kSteps;
  if (radices.size() == 1 && !is_codelet(n)) plan.method = choose_for_prime(n).method;
  switch (plan.method) {
    case FftMethod::kSteps:
      plan_steps(plan);
      break;
    case FftMethod::kDirect:
      plan_direct(plan);
      break;
    case FftMethod::kRader:
      plan_rader(plan);
      break;
    case FftMethod::kBluestein:
      plan_bluestein(plan);
  }
  return plan;
}

template <typename T>
const T* FftPlanner<T>::keep(const std::vector<Complex>& table) {
  std::vector<T>& kept = tables_.emplace_back();
  for (const Complex value : table) {
    kept.push_back(static_cast<T>(value.real()));
    kept.push_back(static_cast<T>(value.imag()));
  }
  return kept.data();
}

template <typename T>
void FftPlanner<T>::plan_steps(FftPlan<T>& plan) {
  int n = plan.length, inner_length = 0;
  for (const int radix : n > 1 ? radices_of(n) : std::vector<int>{}) {
    FftStep<T>& step = plan.steps[plan.step_count++];
    step.radix = radix;
    std::vector<Complex> twiddles;
    for (int p = 0; p < n / radix; ++p) {
      for (int r = 0; r < radix; ++r) twiddles.push_back(root_of_unity(int64_t{p} * r, n));
    }
    step.twiddles = keep(twiddles);
    if (!is_codelet(radix)) {
      const bool again = plan.step_count > 1 && step.radix == (&step)[-1].radix;
      step.inner = again ? (&step)[-1].inner : keep_plan(radix);
      inner_length = std::max(inner_length, step.inner->work_length);
    }
    n /= radix;
  }
  plan.work_length = plan.length + inner_length;
}

template <typename T>
void FftPlanner<T>::plan_direct(FftPlan<T>& plan) {
  const int half = (plan.length - 1) / 2;
  std::vector<Complex> roots;
  for (int k = 1; k <= half; ++k) {
    for (int i = 1; i <= half; ++i) roots.push_back(std::conj(root_of_unity(int64_t{k} * i, plan.length)));
  }
  plan.roots = keep(roots);
  plan.work_length = plan.length;
}

template <typename T>
void FftPlanner<T>::plan_rader(FftPlan<T>& plan) {
  const int64_t p = plan.length, m = p - 1, g = generator_of(p);
  std::vector<int> powers(2 * m);
  int64_t power = 1;
  for (int64_t i = 0; i < m; ++i, power = power * g % p) {
    powers[i] = static_cast<int>(power);
    powers[m + (m - i) % m] = static_cast<int>(power);
  }
  std::vector<Complex> kernel(m);
  for (int64_t i = 0; i < m; ++i) kernel[i] = root_of_unity(powers[m + i], p);
  plan.powers = indices_.emplace_back(std::move(powers)).data();
  plan_convolution(plan, std::move(kernel));
  plan.work_length = std::max(plan.length, plan.convolution->work_length);
}

template <typename T>
void FftPlanner<T>::plan_bluestein(FftPlan<T>& plan) {
  const int64_t n = plan.length, m = bluestein_length(n);
  auto [chirp, kernel] = chirp_and_kernel(n, m);
  plan.chirp = keep(chirp);
  plan_convolution(plan, std::move(kernel));
  plan.work_length = plan.convolution->work_length;
}

template <typename T>
void FftPlanner<T>::plan_convolution(FftPlan<T>& plan, std::vector<Complex> kernel) {
  const auto length = static_cast<double>(kernel.size());
  plan.convolution = keep_plan(static_cast<int>(kernel.size()));
  kernel = transform(kernel);
  for (Complex& value : kernel) value /= length;
  plan.kernel_spectrum = keep(kernel);
}

template <typename T>
void FftPlanner<T>::keep_parts(const T* (&parts)[2], const std::vector<Complex>& table) {
  for (int part = 0; part < 2; ++part) {
    std::vector<T>& kept = tables_.emplace_back();
    for (const Complex value : table) kept.push_back(static_cast<T>(part == 0 ? value.real() : value.imag()));
    parts[part] = kept.data();
  }
}

template <typename T>
LongPlan<T> FftPlanner<T>::long_plan(int n, int lanes) {
  LongPlan<T> plan{};
  const Factors factors = factors_of(n, lanes);
  const int64_t m = factors.first * factors.second;
  plan.length = n;
  plan.first = static_cast<int>(factors.first), plan.second = static_cast<int>(factors.second);
  plan.first_fft = this->plan(plan.first), plan.second_fft = this->plan(plan.second);
  plan.pitch = plan.second + lanes;  // off powers of two
  std::vector<int>& rows = indices_.emplace_back();
  for (int k = 0; k < plan.first; ++k) rows.push_back(k * plan.pitch);
  plan.rows = rows.data();
  std::vector<Complex> twiddles;
  for (int64_t k = 0; k < factors.first; ++k) {
    for (int64_t i = 0; i < factors.second; ++i) twiddles.push_back(root_of_unity(k * i, m));
  }
  keep_parts(plan.twiddles, twiddles);
  if (m == n) return plan;
  auto [chirp, kernel] = chirp_and_kernel(n, m);
  kernel = transform(kernel);
  for (Complex& value : kernel) value /= static_cast<double>(m);
  keep_parts(plan.chirp, chirp);
  keep_parts(plan.kernel_spectrum, kernel);
  return plan;
}

template class FftPlanner<float>;
template class FftPlanner<double>;

}  // namespace affnet
