"""The real 2-D DFT of a tile and its inverse, as matrix products on the tensor cores.

Letters: `T` is the launch's `Tile`; T.HP, T.WP and T.FP are H, W and the columns of the half spectrum, padded to powers
of two. N counts the images and channels of a tile together, k is the frequency along H and v the one along W, r is 0
for the real part and 1 for the imaginary one. Padded rows and columns of the matrices are zero, so padded frequencies
are zero and stay zero.

The matrices are not normalised. They hold cosines and sines, and in the synthesis twice those of each column that
stands for two of the full spectrum. Images are scaled to 2^T.EXPONENT beforehand, so that their spectra, at most H W
times as large, fit float16.

If W / 2 + 1 is one more than a power of two (W = 16, 32), the Nyquist column would double the padded columns. It is
computed separately instead (T.NYQUIST), as the DFT along H of the row sums weighted with (-1)^w.
"""

import triton
import triton.language as tl

from affnet_kernels.kernels.product import halves, power_of_two, product

SPECTRUM_EXPONENT: tl.constexpr = tl.constexpr(9)  # the inverse along H enlarges values up to 32 sqrt(2) times


@triton.jit
def image_scales(
    x,  # [R, N, C]
    EXPONENT: tl.constexpr,
    T: tl.constexpr,
):  # scale, 1 / scale: [1, N, 1], or a scalar if a tile is one image
    """The power of two that scales each image to 2^EXPONENT, independent of the tile's other images."""
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
    planes,  # [1, N, 1] or a scalar; the same for all planes of an image
    ROWS: tl.constexpr,
    T: tl.constexpr,
):  # [ROWS, 1], or a scalar
    """A value per image as one per row of the spectral map, whose rows run over images, then frequencies."""
    if T.IMAGES == 1:
        return planes
    else:
        N: tl.constexpr = planes.shape[1]
        images = tl.max(tl.reshape(planes, (T.IMAGES, N // T.IMAGES)), axis=1, keep_dims=True)
        return tl.reshape(tl.broadcast_to(images, (T.IMAGES, ROWS // T.IMAGES)), (ROWS, 1))


@triton.jit
def load_halves(ptr, T: tl.constexpr):  # high, low
    """Elements of a matrix. The low halves of all matrices follow the high halves of all of them."""
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
    """Turns rows of an image into half spectra; ADJOINT: the adjoint of the synthesis, for gradients."""
    if ADJOINT:
        return load_matrix(matrices_ptr + 2 * T.WP * T.FP, 2 * T.FP, T.WP, True, T)
    else:
        return load_matrix(matrices_ptr, T.WP, 2 * T.FP, False, T)


@triton.jit
def synthesis_along_w(matrices_ptr, ADJOINT: tl.constexpr, T: tl.constexpr):  # [(v, r), WP]
    """Turns half spectra into rows of an image; ADJOINT: the adjoint of the analysis, for gradients."""
    if ADJOINT:
        return load_matrix(matrices_ptr, T.WP, 2 * T.FP, True, T)
    else:
        return load_matrix(matrices_ptr + 2 * T.WP * T.FP, 2 * T.FP, T.WP, False, T)


@triton.jit
def along_h(matrices_ptr, INVERSE: tl.constexpr, T: tl.constexpr):  # [(k, r), (h, r)], or its transpose
    """The complex DFT along H in real form. Its transpose is its adjoint, and its inverse up to a factor H."""
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
    """The part of `along_h` for the Nyquist column, whose rows are real: its real inputs or outputs."""
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
