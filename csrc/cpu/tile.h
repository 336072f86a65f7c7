// One tile, forward and backward: transform -> spectral map -> inverse transform, all in scratch memory.
//
// Scales. The transforms here are unnormalised and leave a factor of 2: X = s/2 * (what they give), s = 1/sqrt(H W). It
// goes into w1 and into the factor s^2/2 of the branch. Backward, the spectrum of dy also carries half the hermitian
// weight, so what is summed over its slots is sums over the full spectrum, and dx comes out with the same s^2/2.
#pragma once

#include "contract.h"
#include "transform.h"

namespace affnet::AFFNET_CAPABILITY {

// Slots of a backward block, at most: long enough for the sums that are the weights' gradients to stay in registers,
// short enough for the second cache.
inline constexpr int kMostBlockSlots = 768;

// Vectors of slots that go through the layers together: what a step reads and writes fits the first cache.
AFFNET_INLINE int step_vectors(int size, int hidden) {
  const int vectors = 64 / (size > hidden ? size : hidden);
  return vectors < 2 ? 2 : vectors > 8 ? 8 : vectors;
}

constexpr ptrdiff_t round_up(ptrdiff_t value, ptrdiff_t to) { return (value + to - 1) / to * to; }

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
  T* hidden;  // [Dh, 2, lanes], pre-activations of a vector of slots
  T* mask;    // [D, 2, lanes]
  T* O1;      // [Dh, 2, block]
  T* dP1;     // [Dh, 2, block]
  T* dP2;     // [D, 2, block]
  ptrdiff_t step, block;
  size_t bytes;

  Scratch(const Call<T>& call, bool backward, char* base) {
    constexpr ptrdiff_t kLanes = Vec<T>::kLanes;
    Arena arena(base);
    ptrdiff_t staging = 0, rows = 0, fft = 0, slots = 0;
    for (int i = 0; i <= call.images_log2; ++i) {
      const Geometry<T>& g = *call.geometry[i];
      const auto widen = [](ptrdiff_t& to, ptrdiff_t value) { to = value > to ? value : to; };
      widen(staging, static_cast<ptrdiff_t>(g.height) * g.staging_stride);
      widen(rows, static_cast<ptrdiff_t>((g.height + 1) / 2) * 2 * g.row_stride);
      widen(fft, g.column_fft.work_length);
      widen(fft, g.row_fft.work_length);
      widen(slots, g.slot_stride);
    }
    const ptrdiff_t size = call.size, hidden_size = call.hidden;
    transform.staging = arena.take<T>(staging);
    transform.rows = arena.take<T>(rows + 2 * kLanes);
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
    mask = arena.take<T>(size * 2 * step);
    if (backward) {
      block = slots < kMostBlockSlots ? slots : kMostBlockSlots;
      block = round_up(block, kLanes) + kLanes;  // off powers of two
      G = arena.take<T>(size * 2 * slots);
      O1 = arena.take<T>(hidden_size * 2 * block);
      dP1 = arena.take<T>(hidden_size * 2 * block);
      dP2 = arena.take<T>(size * 2 * block);
    }
    bytes = arena.used();
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

template <typename T>
AFFNET_INLINE Channels<T> interleaved(T* data, ptrdiff_t part) {
  return {data, data + part, 2 * part};
}
template <typename T>
AFFNET_INLINE Channels<const T> read(Channels<T> channels) {
  return {channels.re, channels.im, channels.stride};
}

// f(c, v) for each of `count` channels and each vector of a step, v its first value.
template <typename F>
AFFNET_INLINE void each_channel(int count, ptrdiff_t values, int lanes, F&& f) {
  for (int c = 0; c < count; ++c) {
    for (ptrdiff_t v = 0; v < values; v += lanes) f(c, v);
  }
}

// X = mask(X) * X at every slot.
template <Activation kActivation, typename T>
void spectral_map(const Call<T>& call, const Geometry<T>& g, const Block<T>& block, Prefetcher& prefetcher,
                  const Scratch<T>& scratch) {
  using V = Vec<T>;
  const V threshold(call.threshold);
  const Channels<T> hidden = interleaved(scratch.hidden, scratch.step);
  const Channels<T> mask = interleaved(scratch.mask, scratch.step);
  const ptrdiff_t slots = round_up(g.slots, V::kLanes);
  prefetcher.divide(slots / scratch.step + 1);
  for (ptrdiff_t slot = 0; slot < slots; slot += scratch.step) {
    const ptrdiff_t values = slots - slot < scratch.step ? slots - slot : scratch.step;
    const int vectors = static_cast<int>(values / V::kLanes);
    const Channels<T> X = interleaved(scratch.X, g.slot_stride) + slot;
    prefetcher.advance();
    if constexpr (kActivation == Activation::kRelu) {
      contract<Contraction::kForwardRelu>(read(X), block.w1, block.b1, hidden, vectors);
    } else {
      contract<Contraction::kForward>(read(X), block.w1, block.b1, hidden, vectors);
      each_channel(call.hidden, values, V::kLanes, [&](int o, ptrdiff_t v) AFFNET_LAMBDA {
        T* const re = hidden.re + o * hidden.stride + v;
        T* const im = hidden.im + o * hidden.stride + v;
        activate<kActivation>(V::load(re)).store(re);
        activate<kActivation>(V::load(im)).store(im);
      });
    }
    contract<Contraction::kForward>(read(hidden), block.w2, block.b2, mask, vectors);
    each_channel(call.size, values, V::kLanes, [&](int c, ptrdiff_t v) AFFNET_LAMBDA {
      const V m_re = soft_shrink(V::load(mask.re + c * mask.stride + v), threshold);
      const V m_im = soft_shrink(V::load(mask.im + c * mask.stride + v), threshold);
      T* const re = X.re + c * X.stride + v;
      T* const im = X.im + c * X.stride + v;
      const V x_re = V::load(re), x_im = V::load(im);
      (m_re * x_re - m_im * x_im).store(re);
      (m_re * x_im + m_im * x_re).store(im);
    });
  }
}

// Gradients at the slots of one block: O1, dP1 and dP2 for the parameters, G for the input.
template <Activation kActivation, typename T>
void spectral_map_vjp(const Call<T>& call, const Block<T>& block, Channels<const T> all_X, Channels<T> all_G,
                      ptrdiff_t slots, Prefetcher& prefetcher, const Scratch<T>& scratch) {
  using V = Vec<T>;
  const V threshold(call.threshold);
  const Channels<T> P1 = interleaved(scratch.hidden, scratch.step);
  const Channels<T> P2 = interleaved(scratch.mask, scratch.step);
  for (ptrdiff_t slot = 0; slot < slots; slot += scratch.step) {
    const ptrdiff_t values = slots - slot < scratch.step ? slots - slot : scratch.step;
    const int vectors = static_cast<int>(values / V::kLanes);
    const Channels<T> O1 = interleaved(scratch.O1, scratch.block) + slot;
    const Channels<T> dP1 = interleaved(scratch.dP1, scratch.block) + slot;
    const Channels<T> dP2 = interleaved(scratch.dP2, scratch.block) + slot;
    const Channels<const T> X = all_X + slot;
    const Channels<T> G = all_G + slot;
    prefetcher.advance();

    contract<Contraction::kForward>(X, block.w1, block.b1, P1, vectors);
    each_channel(call.hidden, values, V::kLanes, [&](int o, ptrdiff_t v) AFFNET_LAMBDA {
      activate<kActivation>(V::load(P1.re + o * P1.stride + v)).store(O1.re + o * O1.stride + v);
      activate<kActivation>(V::load(P1.im + o * P1.stride + v)).store(O1.im + o * O1.stride + v);
    });
    contract<Contraction::kForward>(read(O1), block.w2, block.b2, P2, vectors);
    each_channel(call.size, values, V::kLanes, [&](int c, ptrdiff_t v) AFFNET_LAMBDA {
      const V p_re = V::load(P2.re + c * P2.stride + v), p_im = V::load(P2.im + c * P2.stride + v);
      const V m_re = soft_shrink(p_re, threshold), m_im = soft_shrink(p_im, threshold);
      const V x_re = V::load(X.re + c * X.stride + v), x_im = V::load(X.im + c * X.stride + v);
      T* const re = G.re + c * G.stride + v;
      T* const im = G.im + c * G.stride + v;
      const V g_re = V::load(re), g_im = V::load(im);
      soft_shrink_vjp(g_re * x_re + g_im * x_im, p_re, threshold).store(dP2.re + c * dP2.stride + v);
      soft_shrink_vjp(g_im * x_re - g_re * x_im, p_im, threshold).store(dP2.im + c * dP2.stride + v);
      (g_re * m_re + g_im * m_im).store(re);
      (g_im * m_re - g_re * m_im).store(im);
    });
    contract<Contraction::kAdjoint>(read(dP2), block.w2, Bias<T>{}, dP1, vectors);
    each_channel(call.hidden, values, V::kLanes, [&](int o, ptrdiff_t v) AFFNET_LAMBDA {
      T* const re = dP1.re + o * dP1.stride + v;
      T* const im = dP1.im + o * dP1.stride + v;
      activate_vjp<kActivation>(V::load(re), V::load(P1.re + o * P1.stride + v)).store(re);
      activate_vjp<kActivation>(V::load(im), V::load(P1.im + o * P1.stride + v)).store(im);
    });
    if (call.input_grad) contract<Contraction::kAddAdjoint>(read(dP1), block.w1, Bias<T>{}, G, vectors);
  }
}

template <typename T, typename F>
AFFNET_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kIdentity:
      return f(std::integral_constant<Activation, Activation::kIdentity>{});
  }
}

// The planes of channel c of block k, from image `first` on, of a tensor [B, C, H, W].
template <typename Pointee, typename T>
Planes<Pointee> planes_of(const Call<T>& call, Pointee* data, int64_t first, int64_t k, int c) {
  using Byte = std::conditional_t<std::is_const_v<Pointee>, const char, char>;
  const int64_t plane = call.height * call.width, channels = int64_t{call.blocks} * call.size;
  const int64_t offset = ((first * channels) + k * call.size + c) * plane;
  return {static_cast<Byte*>(data) + offset * storage_bytes(call.storage), channels * plane, call.storage};
}

// Whether all outputs are finite.
template <typename T>
bool all_finite(Vec<T> finite) {
  for (int l = 0; l < Vec<T>::kLanes; ++l) {
    if (finite.raw[l] != finite.raw[l]) return false;
  }
  return true;
}

// Block k of the images from `first` on; k < 0: none.
struct Tile {
  int64_t k, first;
  int images_log2;
};

// Queues a tile's part of a tensor [B, C, H, W], in which the planes of a block are one run.
template <typename T>
void prefetch(const Call<T>& call, const Tile& tile, const void* data, Prefetcher& prefetcher) {
  if (tile.k < 0) return;
  for (int64_t image = 0; image < int64_t{1} << tile.images_log2; ++image) {
    prefetcher.add(planes_of(call, data, tile.first + image, tile.k, 0).data,
                   call.size * call.height * call.width * storage_bytes(call.storage));
  }
}

// Whether the tile's part of y is finite. While this tile is computed, memory is asked for the next one's x.
template <typename T>
bool forward_tile(const Call<T>& call, const Block<T>& block, const Tile& tile, const Tile& next, T scale,
                  const Scratch<T>& scratch) {
  const auto [k, first, images_log2] = tile;
  const Geometry<T>& g = *call.geometry[images_log2];
  const ptrdiff_t channel = 2 * static_cast<ptrdiff_t>(g.slot_stride);
  for (int c = 0; c < call.size; ++c) {
    to_spectrum(g, planes_of(call, call.x, first, k, c), scratch.X + c * channel, false, scratch.transform);
  }
  Prefetcher prefetcher;
  prefetch<T>(call, tile, call.out, prefetcher);
  prefetch<T>(call, next, call.x, prefetcher);
  with_activation<T>(call.activation, [&](auto a) { spectral_map<a()>(call, g, block, prefetcher, scratch); });
  Vec<T> finite(T(0));
  for (int c = 0; c < call.size; ++c) {
    from_spectrum(g, scratch.X + c * channel, planes_of(call, call.x, first, k, c),
                  planes_of(call, call.out, first, k, c), scale, false, finite, scratch.transform);
  }
  return all_finite(finite);
}

// Whether the tile's part of dx is finite. The parameters' gradients are added to `partial`, unscaled.
template <typename T>
bool backward_tile(const Call<T>& call, const Block<T>& block, const Tile& tile, const Tile& next, T scale, T* partial,
                   const Scratch<T>& scratch) {
  const auto [k, first, images_log2] = tile;
  constexpr int kLanes = Vec<T>::kLanes;
  const Geometry<T>& g = *call.geometry[images_log2];
  const ptrdiff_t channel = 2 * static_cast<ptrdiff_t>(g.slot_stride);
  for (int c = 0; c < call.size; ++c) {
    to_spectrum(g, planes_of(call, call.x, first, k, c), scratch.X + c * channel, false, scratch.transform);
    to_spectrum(g, planes_of(call, call.dy, first, k, c), scratch.G + c * channel, true, scratch.transform);
  }
  const ptrdiff_t weight = static_cast<ptrdiff_t>(call.size) * call.hidden;
  T* const dw1 = partial;
  T* const db1 = dw1 + 2 * weight;
  T* const dw2 = db1 + 2 * call.hidden;
  T* const db2 = dw2 + 2 * weight;
  Prefetcher prefetcher;
  if (call.input_grad) prefetch<T>(call, tile, call.out, prefetcher);
  prefetch<T>(call, next, call.x, prefetcher);
  prefetch<T>(call, next, call.dy, prefetcher);
  const ptrdiff_t slots = round_up(g.slots, kLanes), steps = slots / scratch.step + 1;
  prefetcher.divide(steps);
  const ptrdiff_t blocks = (slots + kMostBlockSlots - 1) / kMostBlockSlots;
  const ptrdiff_t block_slots = round_up((slots + blocks - 1) / blocks, kLanes);
  for (ptrdiff_t slot = 0; slot < slots; slot += block_slots) {
    const ptrdiff_t count = slots - slot < block_slots ? slots - slot : block_slots;
    const int vectors = static_cast<int>(count / kLanes);
    const Channels<const T> X = read(interleaved(scratch.X, g.slot_stride) + slot);
    const Channels<T> G = interleaved(scratch.G, g.slot_stride) + slot;
    with_activation<T>(call.activation,
                       [&](auto a) { spectral_map_vjp<a()>(call, block, X, G, count, prefetcher, scratch); });
    if (!call.parameter_grads) continue;
    const Channels<const T> O1 = read(interleaved(scratch.O1, scratch.block));
    const Channels<const T> dP1 = read(interleaved(scratch.dP1, scratch.block));
    const Channels<const T> dP2 = read(interleaved(scratch.dP2, scratch.block));
    add_weight_grad(X, dP1, vectors, call.size, call.hidden, dw1, dw1 + weight);
    add_bias_grad(dP1, vectors, call.hidden, db1, db1 + call.hidden);
    add_weight_grad(O1, dP2, vectors, call.hidden, call.size, dw2, dw2 + weight);
    add_bias_grad(dP2, vectors, call.size, db2, db2 + call.size);
  }
  if (!call.input_grad) return true;
  Vec<T> finite(T(0));
  for (int c = 0; c < call.size; ++c) {
    from_spectrum(g, scratch.G + c * channel, planes_of(call, call.dy, first, k, c),
                  planes_of(call, call.out, first, k, c), scale, true, finite, scratch.transform);
  }
  return all_finite(finite);
}

}  // namespace affnet::AFFNET_CAPABILITY
