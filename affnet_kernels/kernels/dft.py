"""The real 2-D DFT of a tile and its inverse, as matrix products on the tensor cores.

Letters: `T` is the launch's `Tile`; T.HP, T.WP, T.FP are H, W and the half spectrum's columns padded to powers of two;
N counts the images and channels of a tile together; k is the frequency along H, v along W; r is 0 for real, 1 for
imaginary. Padded rows and columns of the matrices are zero, so padded frequencies are zero and stay zero.

Where W / 2 + 1 is one more than a power of two (W = 16, 32) the Nyquist column would double the padded columns. It runs
beside the others instead (T.NYQUIST): it is the DFT along H of the row sums weighted with (-1)^w.
"""

import triton
import triton.language as tl


@triton.jit
def round_tf32(a):
    """The nearest value with tf32's ten fraction bits: the tensor cores would truncate, which errs twice as much."""
    nearest = ((a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(a == a, nearest, a)  # the carry would run through a NaN's fraction into the sign


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, A_EXACT: tl.constexpr = False, B_EXACT: tl.constexpr = False):
    """a @ b + acc in float32 accumulation; an exact operand is one whose float32 values are tf32 values already.

    "tf32" rounds both operands (relative error 3e-4); "tf32x3" splits them into a high and a low part and adds the
    three products that matter, the small ones first (8e-8, as float32 itself). Triton's own "tf32x3" takes half as many
    instructions again: it guards every element against NaN. Here a NaN stays one in the low part, and so in the sum.
    """
    if PRECISION == "tf32":
        a_high = a if A_EXACT else round_tf32(a)
        b_high = b if B_EXACT else round_tf32(b)
    else:
        a_high = a if A_EXACT else ((a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        b_high = b if B_EXACT else ((b.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        if not A_EXACT:
            acc = tl.dot(a - a_high, b_high, acc, input_precision="tf32")
        if not B_EXACT:
            acc = tl.dot(a_high, b - b_high, acc, input_precision="tf32")
    return tl.dot(a_high, b_high, acc, input_precision="tf32")


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.full((ROWS, COLUMNS), 0.0, tl.float32)


@triton.jit
def load_matrix(
    ptr,  # [ROWS, COLUMNS], row-major
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # [ROWS, COLUMNS], or [COLUMNS, ROWS] if transposed
    if TRANSPOSED:
        return tl.load(ptr + tl.arange(0, COLUMNS)[:, None] + COLUMNS * tl.arange(0, ROWS)[None, :])
    else:
        return tl.load(ptr + tl.arange(0, COLUMNS)[None, :] + COLUMNS * tl.arange(0, ROWS)[:, None])


@triton.jit
def analysis_along_w(matrices_ptr, ADJOINT: tl.constexpr, T: tl.constexpr):  # [WP, (v, r)]
    """What turns rows of an image into half spectra; ADJOINT: the adjoint of the synthesis, for a gradient."""
    if ADJOINT:
        return load_matrix(matrices_ptr + 2 * T.WP * T.FP, 2 * T.FP, T.WP, True)
    else:
        return load_matrix(matrices_ptr, T.WP, 2 * T.FP, False)


@triton.jit
def synthesis_along_w(matrices_ptr, ADJOINT: tl.constexpr, T: tl.constexpr):  # [(v, r), WP]
    """What turns half spectra into rows of an image; ADJOINT: the adjoint of the analysis, for a gradient."""
    if ADJOINT:
        return load_matrix(matrices_ptr, T.WP, 2 * T.FP, True)
    else:
        return load_matrix(matrices_ptr + 2 * T.WP * T.FP, 2 * T.FP, T.WP, False)


@triton.jit
def along_h(matrices_ptr, INVERSE: tl.constexpr, T: tl.constexpr):  # [(k, r), (h, r)], or its transpose
    """The complex DFT along H in real form: orthogonal, so that its transpose is its inverse and its adjoint."""
    return load_matrix(matrices_ptr + 4 * T.WP * T.FP, 2 * T.HP, 2 * T.HP, INVERSE)


@triton.jit
def to_frequency(
    x,  # [HP, N, WP]
    matrices_ptr,
    ADJOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,  # x comes from a 16-bit type
    N: tl.constexpr,
    T: tl.constexpr,
):  # [HP, 2, N, FP], axes k, r, n, v
    rows = tl.reshape(x, (T.HP * N, T.WP))
    half = product(
        rows, analysis_along_w(matrices_ptr, ADJOINT, T), zeros(T.HP * N, 2 * T.FP), PRECISION, A_EXACT=EXACT
    )
    half = tl.permute(tl.reshape(half, (T.HP, N, T.FP, 2)), (0, 3, 1, 2))
    columns = tl.reshape(half, (2 * T.HP, N * T.FP))
    X = product(along_h(matrices_ptr, False, T), columns, zeros(2 * T.HP, N * T.FP), PRECISION)
    return tl.reshape(X, (T.HP, 2, N, T.FP))


@triton.jit
def to_space(
    X,  # [HP, 2, N, FP], axes k, r, n, v
    matrices_ptr,
    ADJOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [HP, N, WP]
    columns = tl.reshape(X, (2 * T.HP, N * T.FP))
    half = product(along_h(matrices_ptr, True, T), columns, zeros(2 * T.HP, N * T.FP), PRECISION)
    half = tl.permute(tl.reshape(half, (T.HP, 2, N, T.FP)), (0, 2, 3, 1))
    rows = tl.reshape(half, (T.HP * N, 2 * T.FP))
    x = product(rows, synthesis_along_w(matrices_ptr, ADJOINT, T), zeros(T.HP * N, T.WP), PRECISION)
    return tl.reshape(x, (T.HP, N, T.WP))


@triton.jit
def nyquist_sign(T: tl.constexpr):  # [1, 1, WP]
    sign = 1.0 - 2.0 * (tl.arange(0, T.WP) % 2).to(tl.float32)
    return (sign * T.W**-0.5)[None, None, :]


@triton.jit
def nyquist_along_h(matrices_ptr, INVERSE: tl.constexpr, T: tl.constexpr):  # [(k, r), h], or its transpose
    """The part of `along_h` that meets the real input of this column, or makes its real output."""
    h, kr = 2 * tl.arange(0, T.HP), 2 * T.HP * tl.arange(0, 2 * T.HP)
    ptr = matrices_ptr + 4 * T.WP * T.FP
    if INVERSE:
        return tl.load(ptr + h[:, None] + kr[None, :])
    else:
        return tl.load(ptr + h[None, :] + kr[:, None])


@triton.jit
def nyquist_to_frequency(
    x,  # [HP, N, WP]
    matrices_ptr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [HP, 2, N], axes k, r, n
    column = tl.sum(x * nyquist_sign(T), axis=2)
    X = product(nyquist_along_h(matrices_ptr, False, T), column, zeros(2 * T.HP, N), PRECISION)
    return tl.reshape(X, (T.HP, 2, N))


@triton.jit
def nyquist_to_space(
    X,  # [HP, 2, N], axes k, r, n
    matrices_ptr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [HP, N, WP]
    column = product(nyquist_along_h(matrices_ptr, True, T), tl.reshape(X, (2 * T.HP, N)), zeros(T.HP, N), PRECISION)
    return column[:, :, None] * nyquist_sign(T)
