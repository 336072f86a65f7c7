"""The spectral map on a tile: pointwise in frequency, mixing the channels of a block.

A complex row of D channels is stored as a real row of 2 D numbers, 2 d + r, with r = 0 for real and 1 for imaginary
parts. A complex matrix is then a real one of twice the size, whose adjoint is its transpose: one product instead of
four, and wide enough for the tensor cores even at D = 8.
"""

import triton
import triton.language as tl

from affnet_kernels.kernels.activations import activation_value, activation_vjp
from affnet_kernels.kernels.product import halves, product, row_scales, tile_scale

EXPONENT: tl.constexpr = tl.constexpr(15)  # of scaled values: float16 ends at 2^16


@triton.jit
def load_weight(
    w_ptr,  # [2, K, I, O]
    k,
    I: tl.constexpr,
    O: tl.constexpr,
    IP: tl.constexpr,  # I and O padded
    OP: tl.constexpr,
    K: tl.constexpr,
):  # high and low half of (re, im; -im, re), scaled, [2 IP, 2 OP]; the inverse of the scale
    i, o = tl.arange(0, IP)[:, None], tl.arange(0, OP)[None, :]
    ptr, inside = w_ptr + k * (I * O) + i * O + o, (i < I) & (o < O)
    re = tl.load(ptr, mask=inside, other=0.0)
    im = tl.load(ptr + K * I * O, mask=inside, other=0.0)
    scale, undo = tile_scale(tl.maximum(tl.abs(re), tl.abs(im)), EXPONENT)
    re_high, re_low = halves(re * scale)
    im_high, im_low = halves(im * scale)
    return stack(re_high, im_high, IP, OP), stack(re_low, im_low, IP, OP), undo


@triton.jit
def stack(re, im, IP: tl.constexpr, OP: tl.constexpr):  # [2 IP, 2 OP]
    rows = tl.join(tl.join(re, im), tl.join(-im, re))  # [IP, OP, 2, 2], the last axis that of the row
    return tl.reshape(tl.permute(rows, (0, 3, 1, 2)), (2 * IP, 2 * OP))


@triton.jit
def load_bias(
    b_ptr,  # [2, K, O]
    k,
    O: tl.constexpr,
    OP: tl.constexpr,
    K: tl.constexpr,
):  # [1, 2 OP]
    column = tl.arange(0, 2 * OP)[None, :]
    return tl.load(b_ptr + (column & 1) * (K * O) + k * O + column // 2, mask=column < 2 * O, other=0.0)


@triton.jit
def soft_shrink(v, threshold):
    """v moved towards zero by `threshold`, or zero within it; the clamped term is never NaN, v passes its NaN on."""
    return v - tl.minimum(tl.maximum(v, -threshold), threshold)


@triton.jit
def soft_shrink_vjp(d, v, threshold):
    return tl.where(tl.abs(v) <= threshold, 0.0, d)


@triton.jit
def split(
    X,  # [ROWS, 2 DP]
    ROWS: tl.constexpr,
    DP: tl.constexpr,
):  # two of [ROWS, DP]
    return tl.split(tl.reshape(X, (ROWS, DP, 2)))


@triton.jit
def join(re, im, ROWS: tl.constexpr, DP: tl.constexpr):  # [ROWS, 2 DP]
    return tl.reshape(tl.join(re, im), (ROWS, 2 * DP))


@triton.jit
def linear(
    A,  # [ROWS, 2 IP]
    w_high,  # [2 IP, 2 OP]
    w_low,
    w_undo,
    PASSES: tl.constexpr,
):  # [ROWS, 2 OP]
    """A @ w. Rows are frequencies, whose magnitudes differ by orders: each has its own scale."""
    scale, undo = row_scales(A, EXPONENT)
    high, low = halves(A * scale)
    return product(high, low, w_high, w_low, PASSES) * (undo * w_undo)


@triton.jit
def perceptron(
    X,  # [ROWS, 2 DP], scaled to fit float16
    undo,  # the inverse of that scale, a scalar or [ROWS, 1]
    k,
    w1_ptr,  # [2, K, D, DH]
    b1_ptr,  # [2, K, DH]
    w2_ptr,  # [2, K, DH, D]
    b2_ptr,  # [2, K, D]
    PASSES: tl.constexpr,
    T: tl.constexpr,
):  # P1, O1 = act(P1) [ROWS, 2 DHP], P2 [ROWS, 2 DP]
    """Both layers of the mask; P is a layer's value before its activation."""
    w_high, w_low, w_undo = load_weight(w1_ptr, k, T.D, T.DH, T.DP, T.DHP, T.K)
    high, low = halves(X)
    P1 = product(high, low, w_high, w_low, PASSES) * (undo * w_undo) + load_bias(b1_ptr, k, T.DH, T.DHP, T.K)
    ACTIVATION: tl.constexpr = T.ACTIVATION  # Triton 3.6 cannot pass a tuple's str field to a function
    O1 = activation_value(P1, ACTIVATION)
    w_high, w_low, w_undo = load_weight(w2_ptr, k, T.DH, T.D, T.DHP, T.DP, T.K)
    return P1, O1, linear(O1, w_high, w_low, w_undo, PASSES) + load_bias(b2_ptr, k, T.D, T.DP, T.K)


@triton.jit
def spectral_map(
    X,  # [ROWS, 2 DP], scaled to fit float16, or in float16
    undo,  # the inverse of that scale, a scalar or [ROWS, 1]
    k,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    threshold,
    ROWS: tl.constexpr,
    T: tl.constexpr,
):  # [ROWS, 2 DP]
    """M(X) * X, scaled as X is."""
    _, _, P2 = perceptron(X.to(tl.float32), undo, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, T.PASSES, T)
    Mr, Mi = split(soft_shrink(P2, threshold), ROWS, T.DP)
    Xr, Xi = split(X.to(tl.float32), ROWS, T.DP)
    return join(Mr * Xr - Mi * Xi, Mr * Xi + Mi * Xr, ROWS, T.DP)


@triton.jit
def spectral_map_vjp(
    G,  # [ROWS, 2 DP], the gradient of the map's value
    X,  # [ROWS, 2 DP]
    k,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    partials_ptr,  # [2 D + 1, 2 DH], then [2 DH + 1, 2 D]: the program's partial sums of parameter gradients
    before,  # 0: they start from zero
    threshold,
    PARAMETER_GRADS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
):  # dX [ROWS, 2 DP]
    """The derivative of `spectral_map`. Each gradient is used as soon as it is known, which saves registers.

    Both P are recomputed with float32 accuracy whatever T.PASSES is: an error of 3e-4 would flip gates of ReLU and
    soft-shrink, and put gradients off by 2 %.
    """
    scale, undo = row_scales(X, EXPONENT)
    P1, O1, P2 = perceptron(X * scale, undo, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, 3, T)
    Mr, Mi = split(soft_shrink(P2, threshold), ROWS, T.DP)
    Xr, Xi = split(X, ROWS, T.DP)
    Gr, Gi = split(G, ROWS, T.DP)
    direct = join(Gr * Mr + Gi * Mi, Gi * Mr - Gr * Mi, ROWS, T.DP)
    dM = join(Gr * Xr + Gi * Xi, Gi * Xr - Gr * Xi, ROWS, T.DP)
    dP2 = soft_shrink_vjp(dM, P2, threshold)
    if PARAMETER_GRADS:
        second_ptr = partials_ptr + (2 * T.D + 1) * 2 * T.DH
        add_parameter_grads(second_ptr, O1, dP2, before, T.DH, T.D, T.DHP, T.DP, T.PASSES)
    else:  # or the weights, loaded once for both uses, would stay in shared memory: 144 KiB at D = 64, of 80
        tl.debug_barrier()
    high, low, undo = load_weight(w2_ptr, k, T.DH, T.D, T.DHP, T.DP, T.K)
    ACTIVATION: tl.constexpr = T.ACTIVATION
    dO1 = linear(dP2, tl.trans(high), tl.trans(low), undo, T.PASSES)
    dP1 = activation_vjp(dO1, P1, ACTIVATION)
    if PARAMETER_GRADS:
        add_parameter_grads(partials_ptr, X, dP1, before, T.D, T.DH, T.DP, T.DHP, T.PASSES)
    high, low, undo = load_weight(w1_ptr, k, T.D, T.DH, T.DP, T.DHP, T.K)
    return linear(dP1, tl.trans(high), tl.trans(low), undo, T.PASSES) + direct


@triton.jit
def add_parameter_grads(
    ptr,  # [2 I + 1, 2 O]: sums for the stacked weight, then for the bias
    A,  # [ROWS, 2 IP], the layer's input
    dP,  # [ROWS, 2 OP]
    before,
    I: tl.constexpr,
    O: tl.constexpr,
    IP: tl.constexpr,
    OP: tl.constexpr,
    PASSES: tl.constexpr,
):
    row, column = tl.arange(0, 2 * IP)[:, None], tl.arange(0, 2 * OP)
    inside = (row < 2 * I) & (column < 2 * O)[None, :]
    offsets = row * (2 * O) + column[None, :]
    known = column < tl.where(before > 0, 2 * O, 0)
    old = tl.load(ptr + offsets, mask=inside & known[None, :], other=0.0)
    a_scale, a_undo = tile_scale(A, EXPONENT)
    d_scale, d_undo = tile_scale(dP, EXPONENT)
    a_high, a_low = halves(A * a_scale)
    d_high, d_low = halves(dP * d_scale)
    sums = product(tl.trans(a_high), tl.trans(a_low), d_high, d_low, PASSES) * (a_undo * d_undo)
    tl.store(ptr + offsets, old + sums, mask=inside)
    ptr += 4 * I * O
    old = tl.load(ptr + column, mask=known, other=0.0)
    tl.store(ptr + column, old + tl.sum(dP, axis=0), mask=column < 2 * O)
