// What a tile works on: scratch memory, and the parameters of its block.
#pragma once

#include "contraction.h"
#include "fft/half_spectrum.h"

namespace affnet::AFFNET_CAPABILITY {

// Slots of a backward block, at most: long enough for the sums that are the weights' gradients to stay in registers,
// short enough for the second cache.
inline constexpr int kMostBlockSlots = 768;

// Vectors of slots that go through the layers together: what a step reads and writes fits the first cache.
AFFNET_INLINE int step_vectors(int size, int hidden) {
  const int vectors = 64 / (size > hidden ? size : hidden);
  return vectors < 2 ? 2 : vectors > 8 ? 8 : vectors;
}

// Carves scratch memory; with a null base it only measures.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <typename P>
  P* take(ptrdiff_t count) {
    P* const p = reinterpret_cast<P*>(base_ + used_);
    used_ += round_up(count * static_cast<ptrdiff_t>(sizeof(P)), 64);
    return base_ ? p : nullptr;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

template <typename T>
struct Scratch {
  TransformScratch<T> transform{};
  Weight<T> w1, w2;
  T* X;       // [D, 2, slot_stride], spectrum of x, then of the branch
  T* G;       // [D, 2, slot_stride], spectrum of dy, then of dx - dy
  T* hidden;  // [Dh, 2, step], of the slots of a step; backward, pre-activations if the activations do not tell enough
  T* O1;      // [Dh, 2, block]
  T* dP1;     // [Dh, 2, block]
  T* dP2;     // [D, 2, block]
  T *dW1, *dB1, *dW2, *dB2;  // the parameters' gradients, in the order in which contraction.h sums them
  T* sums_end;
  ptrdiff_t step, block;
  size_t bytes;

  Scratch(const Call<T>& call, bool backward, char* base) {
    constexpr ptrdiff_t kLanes = Vec<T>::kLanes;
    Arena arena(base);
    ptrdiff_t staging = 0, rows = 0, fft = 0, long_signals = 0, slots = 0;
    for (int i = -1; i <= call.images_log2; ++i) {
      const Geometry<T>& g = i < 0 ? *call.alone : *call.geometry[i];
      const auto widen = [](ptrdiff_t& to, ptrdiff_t value) { to = value > to ? value : to; };
      widen(staging, static_cast<ptrdiff_t>(g.height) * g.staging_stride);
      widen(rows, static_cast<ptrdiff_t>((g.height + 1) / 2) * 2 * g.row_stride);
      widen(fft, g.column_fft.work_length);
      widen(fft, g.row_fft.work_length);
      for (const LongPlan<T>* plan : {&g.long_column_fft, &g.long_row_fft}) {
        if (plan->length == 0) continue;
        widen(fft, plan->first_fft.work_length);
        widen(fft, plan->second_fft.work_length);
        widen(long_signals, 3 * 2 * long_buffer(*plan));
      }
      widen(slots, g.slot_stride);
    }
    const ptrdiff_t size = call.size, hidden_size = call.hidden;
    transform.staging = arena.take<T>(staging);
    transform.rows = arena.take<T>(rows + 2 * kLanes);
    transform.long_signals = arena.take<T>(long_signals);
    for (auto& buffer : transform.fft) buffer = arena.take<Vec<T>>(fft);
    for (Weight<T>* w : {&w1, &w2}) {
      w->re = arena.take<T>(size * hidden_size);
      w->difference = arena.take<T>(size * hidden_size);
      w->sum = arena.take<T>(size * hidden_size);
      w->inputs = w == &w1 ? call.size : call.hidden;
      w->outputs = w == &w1 ? call.hidden : call.size;
    }
    X = arena.take<T>(size * 2 * slots);
    step = step_vectors(call.size, call.hidden) * kLanes;
    hidden = arena.take<T>(hidden_size * 2 * step);
    if (backward) {
      block = slots < kMostBlockSlots ? slots : kMostBlockSlots;
      block = round_up(block, kLanes) + kLanes;  // off powers of two
      G = arena.take<T>(size * 2 * slots);
      O1 = arena.take<T>(hidden_size * 2 * block);
      dP1 = arena.take<T>(hidden_size * 2 * block);
      dP2 = arena.take<T>(size * 2 * block);
      dW1 = arena.take<T>(weight_sums<T>(size, hidden_size));
      dB1 = arena.take<T>(bias_sums<T>(hidden_size));
      dW2 = arena.take<T>(weight_sums<T>(hidden_size, size));
      dB2 = arena.take<T>(bias_sums<T>(size));
      sums_end = arena.take<T>(0);
    }
    bytes = arena.used();
  }

  void clear_sums() const {
    for (T* p = dW1; p < sums_end; ++p) *p = 0;
  }
};

// The parameters of one block, its weights ready for `contract`.
template <typename T>
struct Block {
  Weight<T> w1, w2;
  Bias<T> b1, b2;

  Block(const Call<T>& call, int64_t k, const Scratch<T>& scratch, T w1_scale) : w1(scratch.w1), w2(scratch.w2) {
    const int64_t weight = int64_t{call.size} * call.hidden, all = call.blocks * weight;
    prepare_weight(w1, call.w1 + k * weight, call.w1 + all + k * weight, w1_scale);
    prepare_weight(w2, call.w2 + k * weight, call.w2 + all + k * weight, T(1));
    b1 = {call.b1 + k * call.hidden, call.b1 + (call.blocks + k) * call.hidden};
    b2 = {call.b2 + k * call.size, call.b2 + (call.blocks + k) * call.size};
  }
};

}  // namespace affnet::AFFNET_CAPABILITY
