// The spectral map of a tile and its adjoint: contractions, with what follows each of them as its `finish`.
#pragma once

#include "scratch.h"

namespace affnet::AFFNET_CAPABILITY {

template <typename T>
AFFNET_INLINE Channels<T> interleaved(T* data, ptrdiff_t part) {
  return {data, data + part, 2 * part};
}
template <typename T>
AFFNET_INLINE Channels<const T> read(Channels<T> channels) {
  return {channels.re, channels.im, channels.stride};
}

// Whether act(act(v)) = act(v), so that act'(act(v)) = act'(v): the backward pass then needs no more than act(v).
constexpr bool is_idempotent(Activation a) { return a == Activation::kRelu || a == Activation::kIdentity; }

// to = act(p)
template <Activation kActivation, typename T>
struct StoreActivated {
  Channels<T> to;
  AFFNET_INLINE void operator()(int o, ptrdiff_t v, Vec<T> p_re, Vec<T> p_im) const {
    const ptrdiff_t at = o * to.stride + v;
    activate<kActivation>(p_re).store(to.re + at), activate<kActivation>(p_im).store(to.im + at);
  }
};

// X = soft_shrink(p) * X
template <typename T>
struct MultiplyByMask {
  Channels<T> X;
  T threshold;
  AFFNET_INLINE void operator()(int c, ptrdiff_t v, Vec<T> p_re, Vec<T> p_im) const {
    using V = Vec<T>;
    T* const re = X.re + c * X.stride + v;
    T* const im = X.im + c * X.stride + v;
    const V m_re = soft_shrink(p_re, V(threshold)), m_im = soft_shrink(p_im, V(threshold));
    const V x_re = V::load(re), x_im = V::load(im);
    (m_re * x_re - m_im * x_im).store(re);
    (m_re * x_im + m_im * x_re).store(im);
  }
};

// Y = soft_shrink(p) * X, backward from G = dY: dp, and what of dX does not go through p, which takes the place of G.
template <typename T>
struct MultiplyByMaskVjp {
  Channels<const T> X;
  Channels<T> G, dp;
  T threshold;
  AFFNET_INLINE void operator()(int c, ptrdiff_t v, Vec<T> p_re, Vec<T> p_im) const {
    using V = Vec<T>;
    const V lambda(threshold);
    T* const re = G.re + c * G.stride + v;
    T* const im = G.im + c * G.stride + v;
    const V m_re = soft_shrink(p_re, lambda), m_im = soft_shrink(p_im, lambda);
    const V x_re = V::load(X.re + c * X.stride + v), x_im = V::load(X.im + c * X.stride + v);
    const V g_re = V::load(re), g_im = V::load(im);
    where_passed(g_re * x_re + g_im * x_im, m_re).store(dp.re + c * dp.stride + v);
    where_passed(g_im * x_re - g_re * x_im, m_im).store(dp.im + c * dp.stride + v);
    (g_re * m_re + g_im * m_im).store(re);
    (g_im * m_re - g_re * m_im).store(im);
  }
  // soft_shrink_vjp, told from what soft_shrink gave: a NaN in d stays.
  static AFFNET_INLINE Vec<T> where_passed(Vec<T> d, Vec<T> m) {
    const Vec<T> zero(T(0));
    return select(m == zero, d * zero, d);
  }
};

// to = act(p), derivative = act'(p)
template <Activation kActivation, typename T>
struct StoreActivatedWithDerivative {
  Channels<T> to, derivative;
  AFFNET_INLINE void operator()(int o, ptrdiff_t v, Vec<T> p_re, Vec<T> p_im) const {
    const ptrdiff_t at = o * to.stride + v, derivative_at = o * derivative.stride + v;
    const auto re = activate_with_derivative<kActivation>(p_re), im = activate_with_derivative<kActivation>(p_im);
    re.value.store(to.re + at), im.value.store(to.im + at);
    re.derivative.store(derivative.re + derivative_at), im.derivative.store(derivative.im + derivative_at);
  }
};

// to = d * act'(p) of an idempotent activation, from act(p)
template <Activation kActivation, typename T>
struct StoreIdempotentVjp {
  Channels<const T> activated;
  Channels<T> to;
  AFFNET_INLINE void operator()(int o, ptrdiff_t v, Vec<T> d_re, Vec<T> d_im) const {
    using V = Vec<T>;
    const ptrdiff_t from = o * activated.stride + v, at = o * to.stride + v;
    activate_vjp<kActivation>(d_re, V::load(activated.re + from)).store(to.re + at);
    activate_vjp<kActivation>(d_im, V::load(activated.im + from)).store(to.im + at);
  }
};

// to = d * factor, in each part
template <typename T>
struct StoreScaled {
  Channels<const T> factor;
  Channels<T> to;
  AFFNET_INLINE void operator()(int o, ptrdiff_t v, Vec<T> d_re, Vec<T> d_im) const {
    using V = Vec<T>;
    const ptrdiff_t from = o * factor.stride + v, at = o * to.stride + v;
    (d_re * V::load(factor.re + from)).store(to.re + at);
    (d_im * V::load(factor.im + from)).store(to.im + at);
  }
};

// to += d
template <typename T>
struct Accumulate {
  Channels<T> to;
  AFFNET_INLINE void operator()(int o, ptrdiff_t v, Vec<T> d_re, Vec<T> d_im) const {
    const ptrdiff_t at = o * to.stride + v;
    (Vec<T>::load(to.re + at) + d_re).store(to.re + at);
    (Vec<T>::load(to.im + at) + d_im).store(to.im + at);
  }
};

// f(c, v) for each of `count` channels and each vector of a step, v its first value.
template <typename F>
AFFNET_INLINE void each_channel(int count, ptrdiff_t values, int lanes, F&& f) {
  for (int c = 0; c < count; ++c) {
    for (ptrdiff_t v = 0; v < values; v += lanes) f(c, v);
  }
}

#ifdef FUSED
constexpr bool apart(Activation) { return false; }
#else
constexpr bool apart(Activation a) { return !is_idempotent(a); }
#endif

// to = act(w1^T X + b1), and what `finish`, which is told that sum, stores besides. 
template <Activation kActivation, typename T, typename Finish>
AFFNET_INLINE void first_layer(const Block<T>& block, Channels<const T> X, Channels<T> to, ptrdiff_t values,
                               const Finish& finish, Prefetcher& prefetcher) {
  using V = Vec<T>;
  const int vectors = static_cast<int>(values / V::kLanes);
  if constexpr (!apart(kActivation)) {
    contract<Product::kForward>(X, block.w1, block.b1, vectors, finish, prefetcher);
  } else {
    contract<Product::kForward>(X, block.w1, block.b1, vectors, StoreActivated<Activation::kIdentity, T>{to},
                                prefetcher);
    each_channel(block.w1.outputs, values, V::kLanes, [&](int o, ptrdiff_t v) AFFNET_LAMBDA {
      const ptrdiff_t from = o * to.stride + v;
      finish(o, v, V::load(to.re + from), V::load(to.im + from));
    });
  }
}

// X = mask(X) * X at every slot.
template <Activation kActivation, typename T>
void spectral_map(const Call<T>& call, const Geometry<T>& g, const Block<T>& block, Prefetcher& prefetcher,
                  const Scratch<T>& scratch) {
  constexpr int kLanes = Vec<T>::kLanes;
  const Channels<T> hidden = interleaved(scratch.hidden, scratch.step);
  const ptrdiff_t slots = round_up(g.slots, kLanes);
  prefetcher.divide(slots / kLanes * (contraction_tiles(call.hidden) + contraction_tiles(call.size)));
  for (ptrdiff_t slot = 0; slot < slots; slot += scratch.step) {
    const ptrdiff_t values = slots - slot < scratch.step ? slots - slot : scratch.step;
    const Channels<T> X = interleaved(scratch.X, g.slot_stride) + slot;
    first_layer<kActivation>(block, read(X), hidden, values, StoreActivated<kActivation, T>{hidden}, prefetcher);
    contract<Product::kForward>(read(hidden), block.w2, block.b2, static_cast<int>(values / kLanes),
                                MultiplyByMask<T>{X, call.threshold}, prefetcher);
  }
}

// Gradients at the slots of one block: O1, dP1 and dP2 for the parameters, G for the input.
template <Activation kActivation, typename T>
void spectral_map_vjp(const Call<T>& call, const Block<T>& block, Channels<const T> all_X, Channels<T> all_G,
                      ptrdiff_t slots, Prefetcher& prefetcher, const Scratch<T>& scratch) {
  using V = Vec<T>;
  const Channels<T> derivative = interleaved(scratch.hidden, scratch.step);
  for (ptrdiff_t slot = 0; slot < slots; slot += scratch.step) {
    const ptrdiff_t values = slots - slot < scratch.step ? slots - slot : scratch.step;
    const int vectors = static_cast<int>(values / V::kLanes);
    const Channels<T> O1 = interleaved(scratch.O1, scratch.block) + slot;
    const Channels<T> dP1 = interleaved(scratch.dP1, scratch.block) + slot;
    const Channels<T> dP2 = interleaved(scratch.dP2, scratch.block) + slot;
    const Channels<const T> X = all_X + slot;
    const Channels<T> G = all_G + slot;

    if constexpr (is_idempotent(kActivation)) {
      first_layer<kActivation>(block, X, O1, values, StoreActivated<kActivation, T>{O1}, prefetcher);
    } else {
      first_layer<kActivation>(block, X, O1, values, StoreActivatedWithDerivative<kActivation, T>{O1, derivative},
                               prefetcher);
    }
    contract<Product::kForward>(read(O1), block.w2, block.b2, vectors, MultiplyByMaskVjp<T>{X, G, dP2, call.threshold},
                                prefetcher);
    if constexpr (is_idempotent(kActivation)) {
      contract<Product::kAdjoint>(read(dP2), block.w2, Bias<T>{}, vectors,
                                  StoreIdempotentVjp<kActivation, T>{read(O1), dP1}, prefetcher);
    } else {
      contract<Product::kAdjoint>(read(dP2), block.w2, Bias<T>{}, vectors, StoreScaled<T>{read(derivative), dP1},
                                  prefetcher);
    }
    if (call.input_grad) {
      contract<Product::kAdjoint>(read(dP1), block.w1, Bias<T>{}, vectors, Accumulate<T>{G}, prefetcher);
    }
  }
}

}  // namespace affnet::AFFNET_CAPABILITY
