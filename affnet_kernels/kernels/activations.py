"""The activations in Triton: value and derivative of each name in `affnet_kernels.activations`."""

import triton
import triton.language as tl


@triton.jit
def activation_value(v, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        return v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "gelu":
        return 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "tanh":
        return tanh(v)
    elif ACTIVATION == "identity":
        return v
    else:
        tl.static_assert(False, "activation_value: expected an activation of affnet_kernels.activations")


@triton.jit
def activation_vjp(d, v, ACTIVATION: tl.constexpr):
    """d * value'(v)."""
    if ACTIVATION == "relu":
        return tl.where(v <= 0.0, 0.0, d)  # a NaN passes its gradient on
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-v))
        return d * (s * (1.0 + v * (1.0 - s)))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(v * 0.7071067811865476))
        pdf = tl.exp(-0.5 * v * v) * 0.3989422804014327
        return d * (cdf + v * pdf)
    elif ACTIVATION == "tanh":
        t = tanh(v)
        return d * (1.0 - t * t)
    elif ACTIVATION == "identity":
        return d
    else:
        tl.static_assert(False, "activation_vjp: expected an activation of affnet_kernels.activations")


@triton.jit
def tanh(v):
    """From exp where |v| is large; near zero, where 1 - exp would cancel, from the first terms of its series."""
    e = tl.exp(-2.0 * tl.abs(v))
    far = (1.0 - e) / (1.0 + e)
    s = v * v
    # The odd Taylor polynomial of degree 13: at |v| = 0.35 its remainder is below float32's rounding.
    near = s * (62.0 / 2835.0 + s * (-1382.0 / 155925.0 + s * (21844.0 / 6081075.0)))
    near = v + v * s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + near)))
    return tl.where(tl.abs(v) < 0.35, near, tl.where(v < 0.0, -far, far))
