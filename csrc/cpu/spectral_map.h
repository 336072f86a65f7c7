// The spectral map of a tile and its adjoint: contractions, each with what follows it as its `finish`.
//
// A `finish` is a function object that contract() calls with a channel, the first slot of a vector, and the
// contraction's result there, real and imaginary part.
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

// Whether act(act(v)) = act(v). Then act'(v) = act'(act(v)), and the backward pass needs only the activations.
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
    const V m_re = soft_shrink(p_re, threshold), m_im = soft_shrink(p_im, threshold);
    const V x_re = V::load(re), x_im = V::load(im);
    (m_re * x_re - m_im * x_im).store(re);
    (m_re * x_im + m_im * x_re).store(im);
  }
};

// The gradients of soft_shrink(p) * X, from that of the product in G: dp, and the part of dX that does not go through
// p, which replaces G.
template <typename T>
struct MultiplyByMaskVjp {
  Channels<const T> X;
  Channels<T> G, dp;
  T threshold;
  AFFNET_INLINE void operator()(int c, ptrdiff_t v, Vec<T> p_re, Vec<T> p_im) const {
    using V = Vec<T>;
    T* const re = G.re + c * G.stride + v;
    T* const im = G.im + c * G.stride + v;
    const V m_re = soft_shrink(p_re, threshold), m_im = soft_shrink(p_im, threshold);
    const V x_re = V::load(X.re + c * X.stride + v), x_im = V::load(X.im + c * X.stride + v);
    const V g_re = V::load(re), g_im = V::load(im);
    mask_vjp(g_re * x_re + g_im * x_im, m_re).store(dp.re + c * dp.stride + v);
    mask_vjp(g_im * x_re - g_re * x_im, m_im).store(dp.im + c * dp.stride + v);
    (g_re * m_re + g_im * m_im).store(re);
    (g_im * m_re - g_re * m_im).store(im);
  }
  // soft_shrink_vjp, from the value m of soft_shrink: d, or zero where m is zero. A NaN in d stays one.
  static AFFNET_INLINE Vec<T> mask_vjp(Vec<T> d, Vec<T> m) {
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

// to = d * factor, separately in the real and the imaginary part
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

// to = act(w1^T X + b1) at `slots` slots; `finish` receives the pre-activations and stores `to`.
//
// An activation that takes more than an instruction or two is computed in a pass of its own over `to`, which is in the
// first-level cache: inlined into the contraction it is as fast, and the code several times as long.
template <Activation kActivation, typename T, typename Finish>
AFFNET_INLINE void first_layer(const Block<T>& block, Channels<const T> X, Channels<T> to, ptrdiff_t slots,
                               const Finish& finish, Prefetcher& prefetcher) {
  using V = Vec<T>;
  const int vectors = static_cast<int>(slots / V::kLanes);
  if constexpr (is_idempotent(kActivation)) {
    contract(X, block.w1, block.b1, vectors, finish, prefetcher);
  } else {
    contract(X, block.w1, block.b1, vectors, StoreActivated<Activation::kIdentity, T>{to}, prefetcher);
    for (int o = 0; o < block.w1.outputs; ++o) {
      for (ptrdiff_t v = 0; v < slots; v += V::kLanes) {
        const ptrdiff_t at = o * to.stride + v;
        finish(o, v, V::load(to.re + at), V::load(to.im + at));
      }
    }
  }
}

// f(first slot, number of slots) for each chunk that goes through both layers at once.
template <typename T, typename F>
AFFNET_INLINE void each_layer_chunk(const Scratch<T>& scratch, ptrdiff_t slots, F&& f) {
  for (ptrdiff_t first = 0; first < slots; first += scratch.layer_chunk) {
    f(first, slots - first < scratch.layer_chunk ? slots - first : scratch.layer_chunk);
  }
}

// X = mask(X) * X at every slot.
template <Activation kActivation, typename T>
void spectral_map(const Call<T>& call, const Geometry<T>& g, const Block<T>& block, Prefetcher& prefetcher,
                  const Scratch<T>& scratch) {
  constexpr int kLanes = Vec<T>::kLanes;
  const Channels<T> O1 = interleaved(scratch.hidden, scratch.layer_chunk);
  const ptrdiff_t all_slots = round_up(g.slots, kLanes);
  prefetcher.divide(all_slots / kLanes * (output_chunks(call.hidden) + output_chunks(call.size)));
  each_layer_chunk(scratch, all_slots, [&](ptrdiff_t first, ptrdiff_t slots) AFFNET_LAMBDA {
    const Channels<T> X = interleaved(scratch.X, g.slot_stride) + first;
    first_layer<kActivation>(block, read(X), O1, slots, StoreActivated<kActivation, T>{O1}, prefetcher);
    contract(read(O1), block.w2, block.b2, static_cast<int>(slots / kLanes), MultiplyByMask<T>{X, call.threshold},
             prefetcher);
  });
}

// The adjoint at the slots of one gradient chunk: O1, dP1 and dP2 for the gradients of the parameters, and G, which
// becomes the gradient of X.
template <Activation kActivation, typename T>
void spectral_map_vjp(const Call<T>& call, const Block<T>& block, Channels<const T> chunk_X, Channels<T> chunk_G,
                      ptrdiff_t chunk_slots, Prefetcher& prefetcher, const Scratch<T>& scratch) {
  const Channels<T> derivative = interleaved(scratch.hidden, scratch.layer_chunk);
  each_layer_chunk(scratch, chunk_slots, [&](ptrdiff_t first, ptrdiff_t slots) AFFNET_LAMBDA {
    const int vectors = static_cast<int>(slots / Vec<T>::kLanes);
    const Channels<T> O1 = interleaved(scratch.O1, scratch.gradient_chunk) + first;
    const Channels<T> dP1 = interleaved(scratch.dP1, scratch.gradient_chunk) + first;
    const Channels<T> dP2 = interleaved(scratch.dP2, scratch.gradient_chunk) + first;
    const Channels<const T> X = chunk_X + first;
    const Channels<T> G = chunk_G + first;
    const MultiplyByMaskVjp<T> multiply_vjp{X, G, dP2, call.threshold};

    if constexpr (is_idempotent(kActivation)) {
      first_layer<kActivation>(block, X, O1, slots, StoreActivated<kActivation, T>{O1}, prefetcher);
      contract(read(O1), block.w2, block.b2, vectors, multiply_vjp, prefetcher);
      contract(read(dP2), block.w2_adjoint, Bias<T>{}, vectors, StoreIdempotentVjp<kActivation, T>{read(O1), dP1},
               prefetcher);
    } else {
      first_layer<kActivation>(block, X, O1, slots, StoreActivatedWithDerivative<kActivation, T>{O1, derivative},
                               prefetcher);
      contract(read(O1), block.w2, block.b2, vectors, multiply_vjp, prefetcher);
      contract(read(dP2), block.w2_adjoint, Bias<T>{}, vectors, StoreScaled<T>{read(derivative), dP1}, prefetcher);
    }
    if (call.input_grad) {
      contract(read(dP1), block.w1_adjoint, Bias<T>{}, vectors, Accumulate<T>{G}, prefetcher);
    }
  });
}

}  // namespace affnet::AFFNET_CAPABILITY
