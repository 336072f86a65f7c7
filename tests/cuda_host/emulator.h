// A host emulator for CUDA kernels, which also checks what a GPU would not.
//
// How to test a kernel without a GPU:
//
//   1. Write it in terms of csrc/cuda/device.h alone: AFFNET_KERNEL and AFFNET_DEVICE instead of __global__ and
//      __device__; thread_index(), cta_index(), barrier(), shuffle_xor(), mma_tf32() instead of the built-ins; and
//      shared memory by byte offset, with shared_load and shared_store. Compiled by nvcc these are the built-ins;
//      compiled by a host compiler with -Itests/cuda_host they are the functions of this file and of emulated_half.h.
//   2. Launch it from a small C++ library, as emulated.h does:
//
//          affnet::emulator::Report report;
//          affnet::emulator::launch(ctas, threads, shared_bytes, report, [&] { my_kernel(arguments); });
//
//      Take the grid from csrc/cuda/launch_plan.h, so that the test launches what the launcher would.
//   3. Compile that with `g++ -std=c++20 -shared -fPIC -Icsrc -Itests/cuda_host`, call it from Python through ctypes
//      (tests/test_cuda_emulated.py, `build` and `emulate`), compare the answer with float64, and assert that the
//      report has no findings.
//   4. Add a few deliberate bugs to the MUTATIONS of the test, and see each of them caught.
//
// Threads are fibers, each of which runs until it reaches a barrier or an exchange; CTAs run one after another. The
// schedule is fixed, so every run repeats exactly. The emulator reports
//
//   races             two threads touch the same 2 bytes of shared memory, one of them writes, and no barrier orders
//                     them, in whatever order the fibers happened to run; or a thread touches what an asynchronous
//                     copy is still to fill, which happens when its thread waits for it and not before;
//   uninitialised     reads of shared memory that was never written;
//   out_of_bounds, misaligned   accesses to shared memory, aligned up to 16 bytes, and those to global memory by
//                     global_load, global_store and copy_async, if the report names the arrays that a kernel has;
//   stuck             threads that wait at different barriers, for a thread that has ended, or too many times;
//   wavefronts        transactions of shared memory against the ideal number, if bank conflicts are counted: the
//                     accesses of a warp are grouped by source line and by how often a lane has been there.
//
// A tensor core's product is summed in float64 and rounded once, towards zero; TF32 operands are truncated to it. A row
// of a matrix is read or written by the lane that names it.
//
// Not modelled: registers, time, caches, the memory model beyond barriers, contraction to FMA, and how a tensor core
// rounds within a sum. `python -m benchmarks.static.compile_check` shows registers and spills.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace affnet::emulator {

constexpr int kWarp = 32;
constexpr int kStackBytes = 1 << 16;
constexpr int64_t kMostSteps = 1 << 22;  // turns of all the threads of a CTA

// Shared-memory transactions of the accesses on one source line.
struct Wavefronts {
  int64_t counted = 0, ideal = 0;
};

struct Report {
  int64_t races = 0, uninitialised = 0, out_of_bounds = 0, misaligned = 0, stuck = 0;
  std::string first;  // the first finding, in words
  std::map<int, Wavefronts> banks;
  std::vector<std::pair<const void*, size_t>> global;  // address and bytes of each array; none: not checked

  int64_t findings() const { return races + uninitialised + out_of_bounds + misaligned + stuck; }
};

class Cta {
 public:
  Cta(int threads, int shared_bytes, bool count_banks, Report& report)
      : threads_(threads), count_banks_(count_banks), report_(report), memory_(shared_bytes), fibers_(threads) {
    for (Fiber& fiber : fibers_) fiber.stack = std::make_unique<char[]>(kStackBytes);
  }

  static Cta*& current() {
    static Cta* cta = nullptr;
    return cta;
  }

  // Runs one CTA to its end. False if its threads wait for each other forever.
  bool run(int64_t index, int64_t count, const std::function<void()>& body) {
    current() = this;
    index_ = index, count_ = count, body_ = &body, epoch_ = 0;
    cells_.assign((memory_.size() + kCellBytes - 1) / kCellBytes, Cell{});
    warp_epochs_.assign((threads_ + kWarp - 1) / kWarp, 0);
    accesses_.clear();
    occurrences_.clear();
    for (Fiber& fiber : fibers_) {
      fiber.state = State::kReady;
      fiber.copies.clear();
      fiber.groups = 0;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      fiber.started = false;
      makecontext(&fiber.context, &Cta::enter, 0);
    }
    int64_t steps = 0;
    while (steps < kMostSteps && step()) ++steps;
    if (count_banks_) count_wavefronts();
    const bool done = all(0, threads_, State::kDone);
    if (steps == kMostSteps) {
      note(report_.stuck, "the threads of a CTA do not come to an end", 0);
    } else if (!done) {
      note(report_.stuck, "threads of a CTA wait at different barriers, or for a thread that has ended", 0);
    }
    return done;
  }

  int thread() const { return thread_; }
  int threads() const { return threads_; }
  int64_t index() const { return index_; }
  int64_t count() const { return count_; }

  void barrier() { wait(State::kAtBarrier); }
  void warp_barrier() { wait(State::kAtWarp); }

  // Offers `value` to the other lanes of the warp and waits for theirs. It does not order memory. A lane may go on and
  // deposit again before the others have read, so the last two values are kept.
  template <typename V>
  void deposit(const V& value) {
    Fiber& fiber = fibers_[thread_];
    static_assert(sizeof(V) <= sizeof(fiber.values[0]));
    std::memcpy(fiber.values[++fiber.deposits % 2], &value, sizeof(V));
    wait(State::kAtDeposit);
  }

  // What lane `lane` of this warp deposited last.
  template <typename V>
  const V& deposit_of(int lane) const {
    const Fiber& fiber = fibers_[thread_ / kWarp * kWarp + lane];
    return *reinterpret_cast<const V*>(fiber.values[fibers_[thread_].deposits % 2]);
  }

  void load(uint32_t offset, void* value, uint32_t size, int line) {
    if (!valid(offset, size, line)) {
      std::memset(value, 0xff, size);
      return;
    }
    for_cells(offset, size, [&](Cell& cell) { read_cell(cell, line); });
    std::memcpy(value, memory_.data() + offset, size);
  }

  void store(uint32_t offset, const void* value, uint32_t size, int line) {
    if (!valid(offset, size, line)) return;
    for_cells(offset, size, [&](Cell& cell) { write_cell(cell, line); });
    std::memcpy(memory_.data() + offset, value, size);
  }

  // Queues a copy. Its target may not be touched by anyone until this thread has waited for it.
  void copy_async(uint32_t offset, const void* from, uint32_t size, int line) {
    if (!valid(offset, size, line) || !valid_global(from, size, line)) return;
    for_cells(offset, size, [&](Cell& cell) {
      write_cell(cell, line);
      cell.in_flight = true;
    });
    Fiber& fiber = fibers_[thread_];
    fiber.copies.push_back({offset, size, from, fiber.groups});
  }

  void copy_async_commit() { ++fibers_[thread_].groups; }

  void copy_async_wait(int pending, int line) {
    Fiber& fiber = fibers_[thread_];
    std::erase_if(fiber.copies, [&](const Copy& copy) {
      if (copy.group >= fiber.groups - pending) return false;
      for_cells(copy.offset, copy.size, [&](Cell& cell) {
        cell.in_flight = false;
        write_cell(cell, line);
      });
      std::memcpy(memory_.data() + copy.offset, copy.from, copy.size);
      return true;
    });
  }

  bool valid_global(const void* at, size_t size, int line) {
    const auto begin = reinterpret_cast<uintptr_t>(at);
    if (begin % size != 0) {
      note(report_.misaligned, "misaligned access to global memory", line);
      return false;
    }
    const bool known = std::any_of(report_.global.begin(), report_.global.end(), [&](const auto& array) {
      const auto first = reinterpret_cast<uintptr_t>(array.first);
      return begin >= first && begin + size <= first + array.second;
    });
    if (known || report_.global.empty()) return true;
    note(report_.out_of_bounds, "global memory out of bounds", line);
    return false;
  }

 private:
  static constexpr uint32_t kCellBytes = 2;

  enum class State { kReady, kAtBarrier, kAtWarp, kAtDeposit, kDone };

  struct Copy {
    uint32_t offset, size;
    const void* from;
    int group;
  };

  struct Fiber {
    ucontext_t context{};
    void* resume_point[5];  // for longjmp; the ucontext only starts a fiber, because switching by it is a system call
    bool started = false;
    std::unique_ptr<char[]> stack;
    State state = State::kDone;
    int deposits = 0;
    std::vector<Copy> copies;
    int groups = 0;  // of copies that have been ended
    alignas(16) unsigned char values[2][32];
  };

  // The last access to a cell: by whom, and after how many barriers of the CTA and of the warp.
  struct Touch {
    int thread = -1, epoch = -1, warp_epoch = -1;
  };

  struct Cell {
    Touch write, read;  // `read` is one reader; the flags say whether there were others in the same epoch
    bool many_lanes = false, many_warps = false;
    bool in_flight = false;  // a copy is to fill it
  };

  static void enter() {
    Cta& cta = *current();
    (*cta.body_)();
    cta.fibers_[cta.thread_].state = State::kDone;
    __builtin_longjmp(cta.scheduler_, 1);
  }

  __attribute__((noinline)) void resume(Fiber& fiber) {
    if (__builtin_setjmp(scheduler_)) return;
    if (fiber.started) __builtin_longjmp(fiber.resume_point, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  __attribute__((noinline)) void wait(State state) {
    Fiber& fiber = fibers_[thread_];
    fiber.state = state;
    if (__builtin_setjmp(fiber.resume_point)) return;
    leave();
  }

  // A function of its own, because __builtin_longjmp must not target the function that calls it.
  __attribute__((noinline)) void leave() { __builtin_longjmp(scheduler_, 1); }

  // Runs every ready thread to its next wait, then releases the warps and CTAs whose threads have all arrived.
  bool step() {
    bool ran = false;
    for (thread_ = 0; thread_ < threads_; ++thread_) {
      if (fibers_[thread_].state != State::kReady) continue;
      ran = true;
      resume(fibers_[thread_]);
    }
    for (size_t warp = 0; warp < warp_epochs_.size(); ++warp) {
      const int begin = static_cast<int>(warp) * kWarp, end = std::min(begin + kWarp, threads_);
      const bool ordered = all(begin, end, State::kAtWarp);
      if (!ordered && !all(begin, end, State::kAtDeposit)) continue;
      warp_epochs_[warp] += ordered;
      release(begin, end);
    }
    if (all(0, threads_, State::kAtBarrier)) {
      ++epoch_;
      release(0, threads_);
    }
    return ran;
  }

  bool all(int begin, int end, State state) const {
    return std::all_of(fibers_.begin() + begin, fibers_.begin() + end,
                       [=](const Fiber& f) { return f.state == state; });
  }

  void release(int begin, int end) {
    for (int i = begin; i < end; ++i) fibers_[i].state = State::kReady;
  }

  void note(int64_t& count, const char* what, int line) {
    if (report_.findings() == 0) {
      report_.first = std::string(what) + " (line " + std::to_string(line) + ", CTA " + std::to_string(index_) +
                      ", thread " + std::to_string(thread_) + ")";
    }
    ++count;
  }

  template <typename F>
  void for_cells(uint32_t offset, uint32_t size, F&& f) {
    for (uint32_t cell = offset / kCellBytes; cell < (offset + size) / kCellBytes; ++cell) f(cells_[cell]);
  }

  bool valid(uint32_t offset, uint32_t size, int line) {
    if (offset + size > memory_.size()) {
      note(report_.out_of_bounds, "shared memory out of bounds", line);
      return false;
    }
    if (offset % std::min(size, 16u) != 0) {
      note(report_.misaligned, "misaligned access to shared memory", line);
      return false;
    }
    if (count_banks_) {
      const int occurrence = occurrences_[{line, thread_}]++;
      accesses_[{line, thread_ / kWarp, occurrence}].push_back({offset, size});
    }
    return true;
  }

  Touch touch() const { return {thread_, epoch_, warp_epochs_[thread_ / kWarp]}; }

  // Whether no barrier lies between `before` and this thread.
  bool unordered(const Touch& before) const {
    if (before.epoch != epoch_ || before.thread == thread_) return false;
    return before.thread / kWarp != thread_ / kWarp || before.warp_epoch == warp_epochs_[thread_ / kWarp];
  }

  void read_cell(Cell& cell, int line) {
    if (cell.write.thread < 0) note(report_.uninitialised, "read of shared memory that was never written", line);
    if (unordered(cell.write)) note(report_.races, "read races with a write", line);
    if (cell.in_flight) note(report_.races, "read of what an asynchronous copy is to fill", line);
    const Touch now = touch();
    if (cell.read.epoch != now.epoch) {
      cell.read = now;
      cell.many_lanes = cell.many_warps = false;
    } else if (cell.read.thread / kWarp != now.thread / kWarp) {
      cell.many_warps = true;
    } else if (cell.read.warp_epoch != now.warp_epoch) {
      cell.read = now;
      cell.many_lanes = false;
    } else if (cell.read.thread != now.thread) {
      cell.many_lanes = true;
    }
  }

  void write_cell(Cell& cell, int line) {
    if (unordered(cell.write)) note(report_.races, "two writes race", line);
    if (cell.in_flight) note(report_.races, "write to what an asynchronous copy is to fill", line);
    const bool others = cell.many_warps || (cell.many_lanes && cell.read.warp_epoch == touch().warp_epoch);
    if (unordered(cell.read) || (cell.read.epoch == epoch_ && others)) {
      note(report_.races, "write races with a read", line);
    }
    cell.write = touch();
  }

  // The hardware serves 128 bytes at a time, from 32, 16 or 8 lanes of 4, 8 or 16 bytes: one word per bank, and a word
  // that several lanes read only once.
  void count_wavefronts() {
    for (const auto& [where, lanes] : accesses_) {
      Wavefronts& line = report_.banks[std::get<0>(where)];
      const size_t phase = 128 / std::max(4u, std::min(16u, lanes[0].second));
      for (size_t begin = 0; begin < lanes.size(); begin += phase) {
        std::map<uint32_t, std::vector<uint32_t>> words;  // by bank
        for (size_t i = begin; i < std::min(begin + phase, lanes.size()); ++i) {
          for (uint32_t word = lanes[i].first / 4; word < (lanes[i].first + lanes[i].second) / 4; ++word) {
            std::vector<uint32_t>& bank = words[word % 32];
            if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
          }
        }
        size_t worst = 0, total = 0;
        for (const auto& [bank, different] : words)
          worst = std::max(worst, different.size()), total += different.size();
        line.counted += static_cast<int64_t>(worst);
        line.ideal += static_cast<int64_t>((total + 31) / 32);
      }
    }
  }

  int threads_, thread_ = 0, epoch_ = 0;
  int64_t index_ = 0, count_ = 0;
  bool count_banks_;
  Report& report_;
  const std::function<void()>* body_ = nullptr;
  void* scheduler_[5];
  std::vector<unsigned char> memory_;
  std::vector<Fiber> fibers_;
  std::vector<int> warp_epochs_;
  std::vector<Cell> cells_;
  std::map<std::pair<int, int>, int> occurrences_;                                            // by (line, thread)
  std::map<std::tuple<int, int, int>, std::vector<std::pair<uint32_t, uint32_t>>> accesses_;  // by (line, warp, nth)
};

// Launches `body` as a grid of CTAs; stops at the first CTA that gets stuck.
inline void launch(int64_t ctas, int threads, int shared_bytes, Report& report, const std::function<void()>& body,
                   bool count_banks = false) {
  Cta cta(threads, shared_bytes, count_banks, report);
  for (int64_t i = 0; i < ctas && cta.run(i, ctas, body); ++i) {
  }
  Cta::current() = nullptr;
}

}  // namespace affnet::emulator

namespace affnet {

inline int thread_index() { return emulator::Cta::current()->thread(); }
inline int thread_count() { return emulator::Cta::current()->threads(); }
inline int64_t cta_index() { return emulator::Cta::current()->index(); }
inline int64_t cta_count() { return emulator::Cta::current()->count(); }
inline void barrier() { emulator::Cta::current()->barrier(); }
inline void warp_barrier() { emulator::Cta::current()->warp_barrier(); }

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

template <typename V>
V shuffle_xor(V value, int mask) {
  emulator::Cta& cta = *emulator::Cta::current();
  cta.deposit(value);
  return cta.deposit_of<V>(cta.thread() % emulator::kWarp ^ mask);
}

inline float towards_zero(double value) {
  const float nearest = static_cast<float>(value);
  return std::abs(double{nearest}) > std::abs(value) ? float_of(bits_of(nearest) - 1) : nearest;
}

// See device.h.
inline void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  struct Operands {
    float a[4], b[2];
  };
  emulator::Cta& cta = *emulator::Cta::current();
  const auto cut = [](float v) { return float_of(bits_of(v) & 0xffffe000); };
  cta.deposit(Operands{{cut(a[0]), cut(a[1]), cut(a[2]), cut(a[3])}, {cut(b[0]), cut(b[1])}});
  const int g = cta.thread() % emulator::kWarp / 4, t = cta.thread() % 4;
  for (int i = 0; i < 4; ++i) {
    double sum = c[i];
    for (int k = 0; k < 8; ++k) {
      const Operands& left = cta.deposit_of<Operands>(4 * g + k % 4);
      const Operands& right = cta.deposit_of<Operands>(4 * (2 * t + i % 2) + k % 4);
      sum += double{left.a[i / 2 + k / 4 * 2]} * double{right.b[k / 4]};
    }
    c[i] = towards_zero(sum);
  }
}

template <typename V>
V shared_load(uint32_t offset, int line = __builtin_LINE()) {
  V value;
  emulator::Cta::current()->load(offset, &value, sizeof(V), line);
  return value;
}

template <typename V>
void shared_store(uint32_t offset, V value, int line = __builtin_LINE()) {
  emulator::Cta::current()->store(offset, &value, sizeof(V), line);
}

template <typename V>
V global_load(const void* from, int line = __builtin_LINE()) {
  V value;
  std::memset(&value, 0xff, sizeof(V));
  if (emulator::Cta::current()->valid_global(from, sizeof(V), line)) std::memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V>
void global_store(void* to, V value, int line = __builtin_LINE()) {
  if (emulator::Cta::current()->valid_global(to, sizeof(V), line)) std::memcpy(to, &value, sizeof(V));
}

}  // namespace affnet

#include "emulated_half.h"
