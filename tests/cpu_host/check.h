// What the programs that check parts of the CPU kernel share: random numbers, failure, and the choice of a check by
// name.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

template <typename... Values>
void expect(bool condition, const char* format, Values... values) {
  if (condition) return;
  std::fprintf(stderr, format, values...);
  std::fprintf(stderr, "\n");
  std::exit(1);
}

// Uniform in [-1, 1), the same sequence in every run.
inline double random_number() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<int64_t>(state)) * 0x1p-63;
}

struct Check {
  const char* name;
  void (*run)();
};

// Runs the check that the only argument names.
template <int N>
int run_named(const Check (&checks)[N], int argc, char** argv) {
  int ran = 0;
  for (const Check& check : checks) {
    if (argc == 2 && std::strcmp(check.name, argv[1]) == 0) check.run(), ++ran;
  }
  if (ran != 1) std::fprintf(stderr, "expected the name of a check\n");
  return ran == 1 ? 0 : 2;
}
