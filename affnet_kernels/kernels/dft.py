"""The real 2-D DFT of a tile and its inverse, as matrix products on the tensor cores.

Letters: `T` is the launch's `Tile`; T.HP, T.WP, T.FP are H, W and the half spectrum's columns padded to powers of two;
N counts the images and channels of a tile together; k is the frequency along H, v along W; r is 0 for real, 1 for
imaginary. Padded rows and columns of the matrices are zero, so padded frequencies are zero and stay zero.

The matrices are not normalised: cosines and sines, and twice those where a column stands for two of the full spectrum.
Images come scaled to 2^T.EXPONENT, so that their spectra, at most H W times as large, still fit float16.

Where W / 2 + 1 is one more than a power of two (W = 16, 32) the Nyquist column would double the padded columns. It runs
beside the others instead (T.NYQUIST): it is the DFT along H of the row sums weighted with (-1)^w.
"""

import triton
import triton.language as tl

from affnet_kernels.kernels.product import halves, power_of_two, product

SPECTRUM_EXPONENT: tl.constexpr = tl.constexpr(9)  # the inverse along H enlarges up to 32 sqrt(2) times


@triton.jit
def image_scales(
    x,  # [R, N, C]
    EXPONENT: tl.constexpr,
    T: tl.constexpr,
):  # scale, 1 / scale: [1, N, 1], or a scalar where a tile is one image
    """The power of two that takes an image to 2^EXPONENT, whatever the other images of the tile hold."""
    if T.IMAGES == 1:
        return power_of_two(tl.max(tl.abs(x)), EXPONENT)
    else:
        N: tl.constexpr = x.shape[1]
        planes = tl.max(tl.max(tl.abs(x), axis=2), axis=0)
        images = tl.max(tl.reshape(planes, (T.IMAGES, N // T.IMAGES)), axis=1, keep_dims=True)
        planes = tl.reshape(tl.broadcast_to(images, (T.IMAGES, N // T.IMAGES)), (1, N, 1))
        return power_of_two(planes, EXPONENT)


@triton.jit
def of_rows(
    planes,  # [1, N, 1], or a scalar: the same for all planes of an image
    ROWS: tl.constexpr,
    T: tl.constexpr,
):  # [ROWS, 1], or a scalar
    """What belongs to the rows of the spectral map, which are counted image by image."""
    if T.IMAGES == 1:
        return planes
    else:
        N: tl.constexpr = planes.shape[1]
        images = tl.max(tl.reshape(planes, (T.IMAGES, N // T.IMAGES)), axis=1, keep_dims=True)
        return tl.reshape(tl.broadcast_to(images, (T.IMAGES, ROWS // T.IMAGES)), (ROWS, 1))


@triton.jit
def load_halves(ptr, T: tl.constexpr):  # high, low
    """Numbers of a matrix: behind the high halves of all matrices lie the low ones."""
    return tl.load(ptr), tl.load(ptr + 4 * (T.WP * T.FP + T.HP * T.HP))


@triton.jit
def load_matrix(
    ptr,  # [ROWS, COLUMNS], row-major
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    T: tl.constexpr,
):  # high and low half, [ROWS, COLUMNS], or [COLUMNS, ROWS] if transposed
    if TRANSPOSED:
        ptr += tl.arange(0, COLUMNS)[:, None] + COLUMNS * tl.arange(0, ROWS)[None, :]
    else:
        ptr += tl.arange(0, COLUMNS)[None, :] + COLUMNS * tl.arange(0, ROWS)[:, None]
    return load_halves(ptr, T)


@triton.jit
def analysis_along_w(matrices_ptr, ADJOINT: tl.constexpr, T: tl.constexpr):  # [WP, (v, r)]
    """What turns rows of an image into half spectra; ADJOINT: the adjoint of the synthesis, for a gradient."""
    if ADJOINT:
        return load_matrix(matrices_ptr + 2 * T.WP * T.FP, 2 * T.FP, T.WP, True, T)
    else:
        return load_matrix(matrices_ptr, T.WP, 2 * T.FP, False, T)


@triton.jit
def synthesis_along_w(matrices_ptr, ADJOINT: tl.constexpr, T: tl.constexpr):  # [(v, r), WP]
    """What turns half spectra into rows of an image; ADJOINT: the adjoint of the analysis, for a gradient."""
    if ADJOINT:
        return load_matrix(matrices_ptr, T.WP, 2 * T.FP, True, T)
    else:
        return load_matrix(matrices_ptr + 2 * T.WP * T.FP, 2 * T.FP, T.WP, False, T)


@triton.jit
def along_h(matrices_ptr, INVERSE: tl.constexpr, T: tl.constexpr):  # [(k, r), (h, r)], or its transpose
    """The complex DFT along H in real form; its transpose is its inverse and its adjoint, but for a factor H."""
    return load_matrix(matrices_ptr + 4 * T.WP * T.FP, 2 * T.HP, 2 * T.HP, INVERSE, T)


@triton.jit
def to_frequency(
    x,  # [HP, N, WP], scaled
    matrices_ptr,
    ADJOINT: tl.constexpr,
    PASSES: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [2 * HP, N, FP], axes (k, r), n, v; neither unscaled nor normalised
    high, low = halves(tl.reshape(x, (T.HP * N, T.WP)))
    w_high, w_low = analysis_along_w(matrices_ptr, ADJOINT, T)
    half = product(high, low, w_high, w_low, PASSES, A_EXACT=T.EXACT)
    half = tl.permute(tl.reshape(half, (T.HP, N, T.FP, 2)), (0, 3, 1, 2))
    high, low = halves(tl.reshape(half, (2 * T.HP, N * T.FP)))
    h_high, h_low = along_h(matrices_ptr, False, T)
    return tl.reshape(product(h_high, h_low, high, low, PASSES), (2 * T.HP, N, T.FP))


@triton.jit
def to_space(
    X,  # [2 * HP, N, FP], axes (k, r), n, v
    undo,  # the inverse of X's scale, [1, N, 1] or a scalar
    matrices_ptr,
    ADJOINT: tl.constexpr,
    PASSES: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [HP, N, WP], unscaled
    scale, inverse = image_scales(X, SPECTRUM_EXPONENT, T)
    high, low = halves(tl.reshape(X * scale, (2 * T.HP, N * T.FP)))
    h_high, h_low = along_h(matrices_ptr, True, T)
    half = product(h_high, h_low, high, low, PASSES)
    half = tl.permute(tl.reshape(half, (T.HP, 2, N, T.FP)), (0, 2, 3, 1))
    high, low = halves(tl.reshape(half, (T.HP * N, 2 * T.FP)))
    w_high, w_low = synthesis_along_w(matrices_ptr, ADJOINT, T)
    x = tl.reshape(product(high, low, w_high, w_low, PASSES), (T.HP, N, T.WP))
    return x * (undo * inverse * (T.H * T.W) ** -0.5)


@triton.jit
def alternating_sign(T: tl.constexpr):  # [1, 1, WP]
    return (1.0 - 2.0 * (tl.arange(0, T.WP) % 2).to(tl.float32))[None, None, :]


@triton.jit
def nyquist_along_h(matrices_ptr, INVERSE: tl.constexpr, T: tl.constexpr):  # [(k, r), h], or its transpose
    """The part of `along_h` that meets the real input of this column, or makes its real output; both halves."""
    h, kr = 2 * tl.arange(0, T.HP), 2 * T.HP * tl.arange(0, 2 * T.HP)
    ptr = matrices_ptr + 4 * T.WP * T.FP
    if INVERSE:
        ptr += h[:, None] + kr[None, :]
    else:
        ptr += h[None, :] + kr[:, None]
    return load_halves(ptr, T)


@triton.jit
def nyquist_to_frequency(
    x,  # [HP, N, WP], scaled
    matrices_ptr,
    PASSES: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [2 * HP, N, 1], axes (k, r), n; neither unscaled nor normalised
    high, low = halves(tl.sum(x * alternating_sign(T), axis=2))
    h_high, h_low = nyquist_along_h(matrices_ptr, False, T)
    return product(h_high, h_low, high, low, PASSES)[:, :, None]


@triton.jit
def nyquist_to_space(
    X,  # [2 * HP, N, 1], axes (k, r), n
    undo,  # the inverse of X's scale, [1, N, 1] or a scalar
    matrices_ptr,
    PASSES: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # [HP, N, WP], unscaled
    scale, inverse = image_scales(X, SPECTRUM_EXPONENT, T)
    high, low = halves(tl.reshape(X * scale, (2 * T.HP, N)))
    h_high, h_low = nyquist_along_h(matrices_ptr, True, T)
    column = product(h_high, h_low, high, low, PASSES)[:, :, None]
    return column * (undo * inverse * (T.H * T.W) ** -0.5) * alternating_sign(T)
