// What the libraries of emulated kernels share.
#pragma once

#include <string>

#include "cuda/spectral_map_vjp.cuh"

using affnet::emulator::Report;

// What the emulator found, as "key=value ..." and the first finding in words.
inline const char* words(const Report& report) {
  static std::string text;
  int64_t counted = 0, ideal = 0;
  for (const auto& [line, wavefronts] : report.banks) counted += wavefronts.counted, ideal += wavefronts.ideal;
  text = "races=" + std::to_string(report.races) + " uninitialised=" + std::to_string(report.uninitialised) +
         " out_of_bounds=" + std::to_string(report.out_of_bounds) + " misaligned=" + std::to_string(report.misaligned) +
         " stuck=" + std::to_string(report.stuck) + " wavefronts=" + std::to_string(counted) +
         " ideal=" + std::to_string(ideal) + ";" + report.first;
  return text.c_str();
}

template <typename T>
const char* reduce(const T* partials, int64_t runs, int K, int D, int Dh, T* dw1, T* db1, T* dw2, T* db2) {
  Report report;
  const int64_t elements = K * affnet::partial_size(D, Dh);
  affnet::emulator::launch((elements + 255) / 256, 256, 0, report,
                           [&] { affnet::reduce_kernel(partials, runs, K, D, Dh, dw1, db1, dw2, db2); });
  return words(report);
}

template <typename T, int kTile>
void run_map(const affnet::MapArguments<T>& a, const affnet::Launch& launch, bool backward, bool count_banks,
             Report& report) {
  if (backward) {
    affnet::emulator::launch(
        a.K * a.runs, launch.threads, launch.shared_bytes, report, [&] { affnet::map_vjp_kernel<T, kTile>(a); },
        count_banks);
  } else {
    affnet::emulator::launch(
        a.units * affnet::tiling_of(a.H, a.W, kTile).tiles, launch.threads, launch.shared_bytes, report,
        [&] { affnet::map_kernel<T, kTile>(a); }, count_banks);
  }
}

template <typename T>
const char* map(affnet::MapArguments<T>* a, bool backward, int tile, bool count_banks) {
  affnet::Launch launch = affnet::launch_for<T>(a->D, a->Dh, backward);
  if (tile != 0) launch = affnet::launch_with_tile<T>(a->D, a->Dh, backward, tile);
  Report report;
  if (launch.tile == 64) run_map<T, 64>(*a, launch, backward, count_banks, report);
  if (launch.tile == 32) run_map<T, 32>(*a, launch, backward, count_banks, report);
  if (launch.tile == 16) run_map<T, 16>(*a, launch, backward, count_banks, report);
  if (launch.tile == 8) run_map<T, 8>(*a, launch, backward, count_banks, report);
  return words(report);
}
