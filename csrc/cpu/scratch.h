// The scratch memory of a tile, and the parameters of its block in the form in which the tile uses them.
#pragma once

#include "contraction.h"
#include "fft/half_spectrum.h"

namespace affnet::AFFNET_CAPABILITY {

// The backward pass goes through the slots in chunks of at most this many: long enough for the sums over slots to stay
// in registers most of the time, short enough for what they are computed from to stay in the second-level cache.
inline constexpr int kMaxGradientChunk = 768;

// The vectors of slots that go through both layers together: what they read and write fits the first-level cache.
AFFNET_INLINE int layer_chunk_vectors(int size, int hidden) {
  const int vectors = 64 / (size > hidden ? size : hidden);
  return vectors < 2 ? 2 : vectors > 8 ? 8 : vectors;
}

// Hands out aligned parts of scratch memory; with a null base it only counts their bytes.
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
  PackedWeight<T> w1{}, w2{};
  PackedWeight<T> w1_adjoint{}, w2_adjoint{};  // backward
  T* X;                                        // [D, 2, slot_stride], spectrum of x, then of the branch
  T* G;                                        // [D, 2, slot_stride], spectrum of dy, then of dx - dy
  T* planes[2];                                // channels-last: [images, D, H, W], copies of a tile's part of tensors
  T* hidden;                                   // [Dh, 2, layer_chunk], the activations; backward, their derivatives
  T* O1;                                       // [Dh, 2, gradient_chunk]
  T* dP1;                                      // [Dh, 2, gradient_chunk]
  T* dP2;                                      // [D, 2, gradient_chunk]
  T *dW1, *dB1, *dW2, *dB2;  // the partial sums of the parameters' gradients, in contraction.h's order
  T* sums_end;
  ptrdiff_t layer_chunk, gradient_chunk;  // both in slots
  size_t bytes;

  Scratch(const Call<T>& call, bool backward, char* base) {
    constexpr ptrdiff_t kLanes = Vec<T>::kLanes;
    Arena arena(base);
    ptrdiff_t staging = 0, rows = 0, pairs = 0, fft = 0, long_signals = 0, slots = 0;
    for (int i = -1; i <= call.images_log2; ++i) {
      const Geometry<T>& g = i < 0 ? *call.alone : *call.geometry[i];
      const auto widen = [](ptrdiff_t& to, ptrdiff_t value) { to = value > to ? value : to; };
      widen(staging, static_cast<ptrdiff_t>(g.height) * g.staging_stride);
      widen(rows, static_cast<ptrdiff_t>((g.height + 1) / 2) * 2 * g.row_stride);
      widen(pairs, round_up(g.pairs, kLanes));
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
    transform.energy = arena.take<T>(2 * pairs);
    transform.long_signals = arena.take<T>(long_signals);
    for (auto& buffer : transform.fft) buffer = arena.take<Vec<T>>(fft);
    const ptrdiff_t weight = 3 * size * hidden_size;
    w1 = {arena.take<T>(weight), call.size, call.hidden};
    w2 = {arena.take<T>(weight), call.hidden, call.size};
    if (backward) {
      w1_adjoint = {arena.take<T>(weight), call.hidden, call.size};
      w2_adjoint = {arena.take<T>(weight), call.size, call.hidden};
    }
    X = arena.take<T>(size * 2 * slots);
    const ptrdiff_t copied = call.channels_last ? size * call.height * call.width << call.images_log2 : 0;
    for (T*& copy : planes) copy = arena.take<T>(copied);
    layer_chunk = layer_chunk_vectors(call.size, call.hidden) * kLanes;
    hidden = arena.take<T>(hidden_size * 2 * layer_chunk);
    if (backward) {
      gradient_chunk = slots < kMaxGradientChunk ? slots : kMaxGradientChunk;
      gradient_chunk = round_up(gradient_chunk, kLanes) + kLanes;  // not a power of two, for the caches' sake
      G = arena.take<T>(size * 2 * slots);
      O1 = arena.take<T>(hidden_size * 2 * gradient_chunk);
      dP1 = arena.take<T>(hidden_size * 2 * gradient_chunk);
      dP2 = arena.take<T>(size * 2 * gradient_chunk);
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

// The parameters of one block, its weights packed for `contract`.
template <typename T>
struct Block {
  PackedWeight<T> w1, w2, w1_adjoint, w2_adjoint;
  Bias<T> b1, b2;

  Block(const Call<T>& call, int64_t k, const Scratch<T>& scratch)
      : w1(scratch.w1), w2(scratch.w2), w1_adjoint(scratch.w1_adjoint), w2_adjoint(scratch.w2_adjoint) {
    b1 = {call.b1 + k * call.hidden, call.b1 + (call.blocks + k) * call.hidden};
    b2 = {call.b2 + k * call.size, call.b2 + (call.blocks + k) * call.size};
  }

  void pack(const Call<T>& call, int64_t k, bool backward, T w1_scale) const {
    const int64_t weight = int64_t{call.size} * call.hidden, all = call.blocks * weight;
    const T *const w1_re = call.w1 + k * weight, *const w2_re = call.w2 + k * weight;
    pack_weight(w1, w1_re, w1_re + all, w1_scale);
    pack_weight(w2, w2_re, w2_re + all, T(1));
    if (backward) {
      if (call.input_grad) pack_adjoint_weight(w1_adjoint, w1_re, w1_re + all, w1_scale);
      pack_adjoint_weight(w2_adjoint, w2_re, w2_re + all, T(1));
    }
  }
};

}  // namespace affnet::AFFNET_CAPABILITY
