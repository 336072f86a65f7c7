"""Matrix products of float32 values on the tensor cores, in half precision that cannot overflow.

An operand is scaled by a power of two, one for all values that are summed together, so that its largest magnitude is
near the upper end of float16's range, and then rounded to float16: eleven bits, as in TF32, at twice TF32's rate and
with half its shared memory. With three passes the remainder is kept as a second float16, and the product is as accurate
as float32's own. Scaling by a power of two rounds nothing, and the power follows from the values themselves, so that
inputs of any magnitude keep their accuracy. A NaN stays a NaN.
"""

import triton
import triton.language as tl


@triton.jit
def power_of_two(
    top,  # magnitudes
    EXPONENT: tl.constexpr,
):  # scale, 1 / scale
    """The power of two that scales `top` into [2^(EXPONENT - 1), 2^EXPONENT), or below it if `top` is nearly zero."""
    exponent = tl.maximum(top.to(tl.int32, bitcast=True) >> 23, EXPONENT)
    scale = (EXPONENT + 253 - exponent) << 23
    inverse = (exponent + 1 - EXPONENT) << 23
    return scale.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def tile_scale(a, EXPONENT: tl.constexpr):
    return power_of_two(tl.max(tl.abs(a)), EXPONENT)


@triton.jit
def row_scales(a, EXPONENT: tl.constexpr):  # [ROWS, 1]
    return power_of_two(tl.max(tl.abs(a), axis=1, keep_dims=True), EXPONENT)


@triton.jit
def halves(a):
    """A float32 value as the sum of two float16 values: its high and its low half."""
    high = a.to(tl.float16)
    return high, (a - high.to(tl.float32)).to(tl.float16)


@triton.jit
def product(
    a_high,
    a_low,
    b_high,
    b_low,
    PASSES: tl.constexpr,  # 1 or 3
    A_EXACT: tl.constexpr = False,  # the low half of a is zero
):  # float32
    """a @ b; the small products are summed first."""
    acc = tl.full((a_high.shape[0], b_high.shape[1]), 0.0, tl.float32)
    if PASSES == 3:
        if not A_EXACT:
            acc = tl.dot(a_low, b_high, acc)
        acc = tl.dot(a_high, b_low, acc)
    return tl.dot(a_high, b_high, acc)
