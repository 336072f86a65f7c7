// Makes FFT plans, owns the tables they point to, and estimates the cost of a transform.
#pragma once

#include <complex>
#include <cstdint>
#include <deque>
#include <vector>

#include "fft/plan.h"

namespace affnet {

// The estimated cycles of a transform of n vectors, in the unit of kCodelets.
double fft_cost(int64_t n);

// The same for one signal of length n whose own elements fill the lanes; infinite if it has fewer elements than lanes.
double long_fft_cost(int64_t n, int64_t lanes);

// Owns plans and their tables.
template <typename T>
class FftPlanner {
 public:
  FftPlan<T> plan(int n);
  LongPlan<T> long_plan(int n, int lanes);

 private:
  const FftPlan<T>* keep_plan(int n) { return &plans_.emplace_back(plan(n)); }
  const T* keep(const std::vector<std::complex<double>>& table);
  void keep_parts(const T* (&parts)[2], const std::vector<std::complex<double>>& table);
  void plan_steps(FftPlan<T>& plan);
  void plan_direct(FftPlan<T>& plan);
  void plan_rader(FftPlan<T>& plan);
  void plan_bluestein(FftPlan<T>& plan);
  // Plans the convolution with `kernel`, whose spectrum it keeps, divided by the kernel's length.
  void plan_convolution(FftPlan<T>& plan, std::vector<std::complex<double>> kernel);

  std::deque<FftPlan<T>> plans_;
  std::deque<std::vector<T>> tables_;
  std::deque<std::vector<int>> indices_;
};

}  // namespace affnet
