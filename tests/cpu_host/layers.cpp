// Checks the CPU kernel's elementary functions, activations, contractions and gradients of parameters, each on its own,
// against plain loops in double; the argument names the check. Compiled for each instruction set, see
// tests/test_cpu_host.py.
#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include "check.h"
#include "spectral_map.h"

namespace affnet::AFFNET_CAPABILITY {
namespace {

using Complex = std::complex<double>;

// Function values.

template <typename T, typename F>
std::vector<T> apply(const std::vector<T>& v, F f) {
  std::vector<T> padded = v, result(round_up(static_cast<ptrdiff_t>(v.size()), Vec<T>::kLanes));
  padded.resize(result.size());
  for (size_t i = 0; i < result.size(); i += Vec<T>::kLanes) f(Vec<T>::load(&padded[i])).store(&result[i]);
  result.resize(v.size());
  return result;
}

// Floats of every exponent and both signs, zeros, subnormals and infinities among them, and a NaN.
std::vector<float> floats_of_every_size() {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x7f800000; bits += 4999) {
    values.push_back(__builtin_bit_cast(float, bits)), values.push_back(__builtin_bit_cast(float, bits | 0x80000000));
  }
  for (int i = -4000; i <= 4000; ++i) values.push_back(static_cast<float>(i) / 40);
  for (const float v : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::denorm_min(),
                        std::numeric_limits<float>::max(), 0.0f}) {
    values.push_back(v), values.push_back(-v);
  }
  values.push_back(std::numeric_limits<float>::quiet_NaN());
  return values;
}

template <typename F, typename Truth, typename Bound>
void compare(const char* name, F f, Truth truth, Bound bound) {
  const std::vector<float> v = floats_of_every_size(), result = apply(v, f);
  for (size_t i = 0; i < v.size(); ++i) {
    if (std::isnan(v[i])) {
      expect(std::isnan(result[i]), "%s(NaN) = %g", name, result[i]);
      continue;
    }
    const double expected = truth(static_cast<double>(v[i]));
    // Half the least subnormal number: rounding alone can be that far off.
    const double allowed = bound(static_cast<double>(v[i])) * std::abs(expected) + 0x1p-149;
    expect(std::abs(result[i] - expected) <= allowed, "%s(%.9g) = %.9g, expected %.9g", name, v[i], result[i],
           expected);
  }
}

void exp_float() {
  const auto truth = [](double v) { return std::exp(v > 87 ? 87 : v < -87 ? -87 : v); };
  compare(
      "exp_", [](Vec<float> v) { return exp_(v); }, truth,
      [](double v) { return 2e-7 + 2e-8 * std::min(std::abs(v), 87.0); });
}

void erf_float() {
  compare(
      "erf_", [](Vec<float> v) { return erf_(v); }, [](double v) { return std::erf(v); }, [](double) { return 4e-7; });
}

void tanh_float() {
  compare(
      "tanh_", [](Vec<float> v) { return tanh_(v); }, [](double v) { return std::tanh(v); },
      [](double) { return 4e-7; });
}

void functions_double() {
  std::vector<double> v;
  for (int i = -7000; i <= 7000; ++i) v.push_back(i / 10.0 + 1e-3);
  const auto e = apply(v, [](Vec<double> x) { return exp_(x); });
  const auto r = apply(v, [](Vec<double> x) { return erf_(x); });
  const auto t = apply(v, [](Vec<double> x) { return tanh_(x); });
  for (size_t i = 0; i < v.size(); ++i) {
    expect(std::abs(e[i] / std::exp(v[i]) - 1) <= 4.5e-16, "exp_(%.17g) = %.17g", v[i], e[i]);
    expect(r[i] == std::erf(v[i]), "erf_(%.17g) = %.17g", v[i], r[i]);
    expect(t[i] == std::tanh(v[i]), "tanh_(%.17g) = %.17g", v[i], t[i]);
  }
}

template <typename T>
void check_clamps() {
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  const std::vector<T> v{-inf, -3, -1, -0.5, 0, 0.5, 1, 3, inf, nan};
  const auto clamped = apply(v, [](Vec<T> x) { return clamp(x, T(1)); });
  const auto positive = apply(v, [](Vec<T> x) { return max_with_zero(x); });
  const auto shrunk = apply(v, [](Vec<T> x) { return soft_shrink(x, T(1)); });
  for (size_t i = 0; i + 1 < v.size(); ++i) {
    expect(clamped[i] == std::fmin(T(1), std::fmax(T(-1), v[i])), "clamp(%g) = %g", v[i], clamped[i]);
    expect(positive[i] == (v[i] > 0 ? v[i] : 0), "max_with_zero(%g) = %g", v[i], positive[i]);
    expect(shrunk[i] == (v[i] > 1 ? v[i] - 1 : v[i] < -1 ? v[i] + 1 : 0), "soft_shrink(%g) = %g", v[i], shrunk[i]);
  }
  for (const auto* result : {&clamped, &positive, &shrunk}) {
    expect(std::isnan(result->back()), "NaN became %g", result->back());
  }
}

void clamps() { check_clamps<float>(), check_clamps<double>(); }

// Activations on SIMD vectors against those on doubles, whose functions are the library's, and whose derivative is
// checked against a difference quotient.
template <typename T>
void check_activations(double tolerance) {
  std::vector<T> v;
  for (int i = -2001; i <= 2001; i += 2) v.push_back(static_cast<T>(i) / 100);
  for (const Activation activation : {
#define AFFNET_LIST(name, enumerator) Activation::enumerator,
           AFFNET_ACTIVATIONS(AFFNET_LIST)
#undef AFFNET_LIST
       }) {
    with_activation(activation, [&](auto a) {
      const auto value = apply(v, [](Vec<T> x) { return activate<decltype(a)::value>(x); });
      const auto same = apply(v, [](Vec<T> x) { return activate_with_derivative<decltype(a)::value>(x).value; });
      const auto slope = apply(v, [](Vec<T> x) { return activate_with_derivative<decltype(a)::value>(x).derivative; });
      for (size_t i = 0; i < v.size(); ++i) {
        const double x = v[i], h = 1e-6;
        const double expected = activate<decltype(a)::value>(x);
        const double expected_slope = activate_vjp<decltype(a)::value>(1.0, x);
        const double quotient = (activate<decltype(a)::value>(x + h) - activate<decltype(a)::value>(x - h)) / (2 * h);
        const int n = static_cast<int>(activation);
        expect(std::abs(value[i] - expected) <= tolerance * (1 + std::abs(x)), "activation %d(%g) = %.9g", n, x,
               double(value[i]));
        expect(std::abs(same[i] - expected) <= tolerance * (1 + std::abs(x)),
               "activation %d(%g) = %.9g with derivative", n, x, double(same[i]));
        expect(std::abs(slope[i] - expected_slope) <= tolerance * (1 + std::abs(x)), "activation %d'(%g) = %.9g", n, x,
               double(slope[i]));
        expect(std::abs(expected_slope - quotient) <= 1e-8, "activation %d'(%g) = %.17g in double", n, x,
               expected_slope);
        expect(!is_idempotent(activation) ||
                   expected_slope == activate_vjp<decltype(a)::value>(1.0, activate<decltype(a)::value>(x)),
               "activation %d is not idempotent at %g", n, x);
      }
    });
  }
}

void activations() { check_activations<float>(4e-7), check_activations<double>(1e-15); }

// Contractions and gradients.

// [channels, 2, stride] of random numbers, and room for a vector behind it.
template <typename T>
struct Spectrum {
  int channels;
  ptrdiff_t stride;
  std::vector<T> data;

  Spectrum(int channels, ptrdiff_t slots)
      : channels(channels), stride(slots + 3), data(channels * 2 * stride + Vec<T>::kLanes) {
    for (T& v : data) v = static_cast<T>(random_number());
  }
  Channels<T> channels_at() { return interleaved(data.data(), stride); }
  Complex at(int c, ptrdiff_t slot) const { return {data[2 * c * stride + slot], data[(2 * c + 1) * stride + slot]}; }
};

template <typename T>
std::vector<T> random_vector(size_t size) {
  std::vector<T> v(size);
  for (T& x : v) x = static_cast<T>(random_number());
  return v;
}

template <typename T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-6 : 1e-14;  // relative L2 error of what is compared

struct Error {
  double difference = 0, size = 0;
  void add(Complex got, Complex expected) { difference += std::norm(got - expected), size += std::norm(expected); }
  template <typename T>
  void check(const char* what, int inputs, int outputs, int vectors) const {
    expect(std::sqrt(difference) <= kTolerance<T> * std::sqrt(size), "%s, %d inputs, %d outputs, %d vectors: error %g",
           what, inputs, outputs, vectors, std::sqrt(difference / size));
  }
};

template <typename F>
void each_layer_size(F f) {
  for (int inputs : {1, 2, 3, 5, 8, 13, 16, 17, 33}) {
    for (int outputs : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 18, 23, 40}) f(inputs, outputs);
  }
}

template <typename T>
struct StoreResult {
  Channels<T> to;
  AFFNET_INLINE void operator()(int o, ptrdiff_t v, Vec<T> re, Vec<T> im) const {
    re.store(to.re + o * to.stride + v), im.store(to.im + o * to.stride + v);
  }
};

template <typename T>
void check_contraction(bool adjoint) {
  each_layer_size([&](int inputs, int outputs) {
    for (const int vectors : {1, 2, 5}) {
      const ptrdiff_t slots = vectors * Vec<T>::kLanes;
      const auto re = random_vector<T>(inputs * outputs), im = random_vector<T>(inputs * outputs);
      const auto b_re = random_vector<T>(outputs), b_im = random_vector<T>(outputs);
      const T scale = T(0.75);
      // Whatever lies behind the packed weights must stay as it is.
      std::vector<T> packed(3 * inputs * outputs + Vec<T>::kLanes, T(7));
      const PackedWeight<T> w{packed.data(), inputs, outputs};
      adjoint ? pack_adjoint_weight(w, re.data(), im.data(), scale) : pack_weight(w, re.data(), im.data(), scale);
      for (size_t i = 3 * inputs * outputs; i < packed.size(); ++i) expect(packed[i] == T(7), "packed too much");

      Spectrum<T> x(inputs, slots), y(outputs, slots);
      const std::vector<T> before = y.data;
      const Bias<T> bias = adjoint ? Bias<T>{} : Bias<T>{b_re.data(), b_im.data()};
      Prefetcher prefetcher;
      contract(read(x.channels_at()), w, bias, vectors, StoreResult<T>{y.channels_at()}, prefetcher);
      Error error;
      for (int o = 0; o < outputs; ++o) {
        for (ptrdiff_t slot = 0; slot < slots; ++slot) {
          Complex sum = adjoint ? Complex() : Complex(b_re[o], b_im[o]);
          for (int i = 0; i < inputs; ++i) {
            const int at = adjoint ? o * inputs + i : i * outputs + o;
            const Complex weight(re[at], im[at]);
            sum += static_cast<double>(scale) * (adjoint ? std::conj(weight) : weight) * x.at(i, slot);
          }
          error.add(y.at(o, slot), sum);
        }
        for (ptrdiff_t part = 2 * o; part < 2 * o + 2; ++part) {
          for (ptrdiff_t at = part * y.stride + slots; at < (part + 1) * y.stride; ++at) {
            expect(y.data[at] == before[at], "wrote behind the last slot");
          }
        }
      }
      error.check<T>(adjoint ? "adjoint" : "contraction", inputs, outputs, vectors);
    }
  });
}

void contraction() { check_contraction<float>(false), check_contraction<double>(false); }
void adjoint_contraction() { check_contraction<float>(true), check_contraction<double>(true); }

template <typename T>
void check_gradients() {
  each_layer_size([&](int inputs, int outputs) {
    for (const int vectors : {1, 4}) {
      const ptrdiff_t slots = vectors * Vec<T>::kLanes;
      std::vector<T> w_sums(weight_sums<T>(inputs, outputs)), b_sums(bias_sums<T>(outputs));
      std::vector<Complex> weight(inputs * outputs), bias(outputs);
      for (int repeat = 0; repeat < 2; ++repeat) {  // the second is added to the first
        Spectrum<T> x(inputs, slots), dp(outputs, slots);
        add_weight_grad(read(x.channels_at()), read(dp.channels_at()), vectors, inputs, outputs, w_sums.data());
        add_bias_grad(read(dp.channels_at()), vectors, outputs, b_sums.data());
        for (ptrdiff_t slot = 0; slot < slots; ++slot) {
          for (int o = 0; o < outputs; ++o) {
            bias[o] += dp.at(o, slot);
            for (int i = 0; i < inputs; ++i) weight[i * outputs + o] += std::conj(x.at(i, slot)) * dp.at(o, slot);
          }
        }
      }
      const T scale = T(0.5);
      std::vector<T> re(inputs * outputs), im(inputs * outputs), b_re(outputs), b_im(outputs);
      store_weight_grad(w_sums.data(), inputs, outputs, scale, re.data(), im.data());
      store_bias_grad(b_sums.data(), outputs, scale, b_re.data(), b_im.data());
      Error weight_error, bias_error;
      for (int i = 0; i < inputs * outputs; ++i) weight_error.add({re[i], im[i]}, 0.5 * weight[i]);
      for (int o = 0; o < outputs; ++o) bias_error.add({b_re[o], b_im[o]}, 0.5 * bias[o]);
      weight_error.check<T>("gradient of the weight", inputs, outputs, vectors);
      bias_error.check<T>("gradient of the bias", inputs, outputs, vectors);
    }
  });
}

void parameter_gradients() { check_gradients<float>(), check_gradients<double>(); }

const Check kChecks[] = {
    {"exp_float", exp_float},
    {"erf_float", erf_float},
    {"tanh_float", tanh_float},
    {"functions_double", functions_double},
    {"clamps", clamps},
    {"activations", activations},
    {"contraction", contraction},
    {"adjoint_contraction", adjoint_contraction},
    {"parameter_gradients", parameter_gradients},
};

}  // namespace
}  // namespace affnet::AFFNET_CAPABILITY

int main(int argc, char** argv) { return run_named(affnet::AFFNET_CAPABILITY::kChecks, argc, argv); }
