"""The fused mixer: forward, backward, and the sum over the backward's partial parameter gradients.

A tile is T.IMAGES images of one channel block. Small tiles stay in registers from load to store. Of a larger one the
spectrum is staged in a scratch row of the program's own, which the caches hold: transforms then run over T.PIECE channels
at a time and the map over T.ROWS frequencies at a time, so that nothing spills at any size.
"""

import triton
import triton.language as tl

from affnet_kernels.kernels.dft import (
    nyquist_to_frequency,
    nyquist_to_space,
    product,
    to_frequency,
    to_space,
    zeros,
)
from affnet_kernels.kernels.spectral_map import fold, spectral_map, spectral_map_vjp


@triton.jit
def image_offsets(first, k, c0, B, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [HP, N, WP]
    """Where channels c0, c0 + 1, ... of block k of the images from `first` on lie, from the first image's start."""
    h, n, w = tl.arange(0, T.HP)[:, None, None], tl.arange(0, N)[None, :, None], tl.arange(0, T.WP)[None, None, :]
    image, c = n // T.PIECE, c0 + n % T.PIECE
    offset = (image * (T.K * T.D) + k * T.D + c) * (T.H * T.W) + h * T.W + w
    return offset, (h < T.H) & (w < T.W) & (c < T.D) & (first + image < B)


@triton.jit
def spectrum_offsets(c0, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [HP, 2, N, FP]
    """Where a piece's frequencies lie in the scratch row [2 D, IMAGES * H * F]."""
    k, r = tl.arange(0, T.HP)[:, None, None, None], tl.arange(0, 2)[None, :, None, None]
    n, v = tl.arange(0, N)[None, None, :, None], tl.arange(0, T.FP)[None, None, None, :]
    image, c = n // T.PIECE, c0 + n % T.PIECE
    offset = (2 * c + r) * (T.IMAGES * T.H * T.F) + image * (T.H * T.F) + k * T.F + v
    return offset, (k < T.H) & (v < T.F) & (c < T.D)


@triton.jit
def nyquist_offsets(c0, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [HP, 2, N]
    k, r = tl.arange(0, T.HP)[:, None, None], tl.arange(0, 2)[None, :, None]
    n = tl.arange(0, N)[None, None, :]
    image, c = n // T.PIECE, c0 + n % T.PIECE
    offset = (2 * c + r) * (T.IMAGES * T.H * T.F) + image * (T.H * T.F) + k * T.F + T.FP
    return offset, (k < T.H) & (c < T.D)


@triton.jit
def row_offsets(f0, T: tl.constexpr):  # offsets and mask [ROWS, 2 DP]
    f, c = f0 + tl.arange(0, T.ROWS)[:, None], tl.arange(0, 2 * T.DP)[None, :]
    return c * (T.IMAGES * T.H * T.F) + f, (f < T.IMAGES * T.H * T.F) & (c < 2 * T.D)


@triton.jit
def stage_spectrum(
    x_ptr,  # the first image
    scratch_ptr,  # [2 D, IMAGES * H * F]
    matrices_ptr,
    first,
    k,
    B,
    ADJOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
):
    N: tl.constexpr = T.IMAGES * T.PIECE
    for c0 in range(0, T.D, T.PIECE):
        offsets, inside = image_offsets(first, k, c0, B, N, T)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        X = to_frequency(x, matrices_ptr, ADJOINT, PRECISION, T.EXACT, N, T)
        targets, kept = spectrum_offsets(c0, N, T)
        tl.store(scratch_ptr + targets, X, mask=kept)
        if T.NYQUIST:
            targets, kept = nyquist_offsets(c0, N, T)
            tl.store(scratch_ptr + targets, nyquist_to_frequency(x, matrices_ptr, PRECISION, N, T), mask=kept)


@triton.jit
def add_from_spectrum(
    scratch_ptr,  # [2 D, IMAGES * H * F]
    x_ptr,  # the first image of what is added
    y_ptr,
    matrices_ptr,
    first,
    k,
    B,
    ADJOINT: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
):
    N: tl.constexpr = T.IMAGES * T.PIECE
    for c0 in range(0, T.D, T.PIECE):
        sources, kept = spectrum_offsets(c0, N, T)
        y = to_space(tl.load(scratch_ptr + sources, mask=kept, other=0.0), matrices_ptr, ADJOINT, PRECISION, N, T)
        if T.NYQUIST:
            sources, kept = nyquist_offsets(c0, N, T)
            y += nyquist_to_space(
                tl.load(scratch_ptr + sources, mask=kept, other=0.0), matrices_ptr, PRECISION, N, T
            )
        offsets, inside = image_offsets(first, k, c0, B, N, T)
        y += tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    x_ptr,  # [B, C, H, W]
    w1_ptr,  # [2, K, D, DH]
    b1_ptr,  # [2, K, DH]
    w2_ptr,  # [2, K, DH, D]
    b2_ptr,  # [2, K, D]
    matrices_ptr,
    scratch_ptr,  # [programs, 2 D, IMAGES * H * F], or nothing
    y_ptr,  # [B, C, H, W]
    B,
    threshold,
    T: tl.constexpr,
):
    """y = F^-1(M(F x) * F x) + x."""
    scratch_ptr += tl.program_id(0).to(tl.int64) * (2 * T.D * T.IMAGES * T.H * T.F)
    for tile in range(tl.program_id(0), tl.cdiv(B, T.IMAGES) * T.K, tl.num_programs(0)):
        first, k = tile // T.K * T.IMAGES, tile % T.K
        start = first * tl.full((), T.K * T.D * T.H * T.W, tl.int64)
        if T.STAGED:
            stage_spectrum(x_ptr + start, scratch_ptr, matrices_ptr, first, k, B, False, T.PRECISION, T)
            tl.debug_barrier()
            for f0 in range(0, T.IMAGES * T.H * T.F, T.ROWS):
                offsets, inside = row_offsets(f0, T)
                X = tl.load(scratch_ptr + offsets, mask=inside, other=0.0)
                Y = spectral_map(X, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T.PRECISION, T.ROWS, T)
                tl.store(scratch_ptr + offsets, Y, mask=inside)
            tl.debug_barrier()
            add_from_spectrum(
                scratch_ptr, x_ptr + start, y_ptr + start, matrices_ptr, first, k, B, False, T.PRECISION, T
            )
            tl.debug_barrier()
        else:
            offsets, inside = image_offsets(first, k, 0, B, T.IMAGES * T.DP, T)
            x = tl.load(x_ptr + start + offsets, mask=inside, other=0.0).to(tl.float32)
            y = x + mixed(x, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, matrices_ptr, threshold, T)
            tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def mixed(
    x,  # [HP, N, WP]
    k,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    matrices_ptr,
    threshold,
    T: tl.constexpr,
):  # [HP, N, WP]
    """F^-1(M(F x) * F x) of a tile that stays in registers."""
    N: tl.constexpr = T.IMAGES * T.DP
    ROWS: tl.constexpr = T.IMAGES * T.HP * T.FP
    X = to_frequency(x, matrices_ptr, False, T.PRECISION, T.EXACT, N, T)
    X = tl.permute(tl.reshape(X, (T.HP, 2, T.IMAGES, T.DP, T.FP)), (2, 0, 4, 3, 1))
    X = tl.reshape(X, (ROWS, 2 * T.DP))
    Y = spectral_map(X, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T.PRECISION, ROWS, T)
    Y = tl.permute(tl.reshape(Y, (T.IMAGES, T.HP, T.FP, T.DP, 2)), (1, 4, 0, 3, 2))
    y = to_space(tl.reshape(Y, (T.HP, 2, N, T.FP)), matrices_ptr, False, T.PRECISION, N, T)
    if T.NYQUIST:
        Z = nyquist_to_frequency(x, matrices_ptr, T.PRECISION, N, T)
        Z = tl.permute(tl.reshape(Z, (T.HP, 2, T.IMAGES, T.DP)), (2, 0, 3, 1))
        Z = tl.reshape(Z, (T.IMAGES * T.HP, 2 * T.DP))
        Z = spectral_map(Z, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T.PRECISION, T.IMAGES * T.HP, T)
        Z = tl.permute(tl.reshape(Z, (T.IMAGES, T.HP, T.DP, 2)), (1, 3, 0, 2))
        y += nyquist_to_space(tl.reshape(Z, (T.HP, 2, N)), matrices_ptr, T.PRECISION, N, T)
    return y


@triton.jit(do_not_specialize=["B"])
def backward_kernel(
    dy_ptr,  # [B, C, H, W]
    x_ptr,  # [B, C, H, W]
    w1_ptr,  # [2, K, D, DH]
    b1_ptr,  # [2, K, DH]
    w2_ptr,  # [2, K, DH, D]
    b2_ptr,  # [2, K, D]
    matrices_ptr,
    scratch_ptr,  # [programs, 2, 2 D, IMAGES * H * F]
    dx_ptr,  # [B, C, H, W]
    partials_ptr,  # [programs / K, parameters]
    B,
    threshold,
    INPUT_GRAD: tl.constexpr,
    PARAMETER_GRADS: tl.constexpr,
    T: tl.constexpr,
):
    """dx, and this program's share of the parameters' gradients: those of block k over every (programs / K)-th tile."""
    k, share = tl.program_id(0) % T.K, tl.program_id(0) // T.K
    X_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (4 * T.D * T.IMAGES * T.H * T.F)
    G_ptr = X_ptr + 2 * T.D * T.IMAGES * T.H * T.F
    dw1, db1 = zeros(2 * T.DP, 2 * T.DHP), tl.full((2 * T.DHP,), 0.0, tl.float32)
    dw2, db2 = zeros(2 * T.DHP, 2 * T.DP), tl.full((2 * T.DP,), 0.0, tl.float32)
    for group in range(share, tl.cdiv(B, T.IMAGES), tl.num_programs(0) // T.K):
        first = group * T.IMAGES
        start = first * tl.full((), T.K * T.D * T.H * T.W, tl.int64)
        stage_spectrum(x_ptr + start, X_ptr, matrices_ptr, first, k, B, False, "tf32x3", T)
        stage_spectrum(dy_ptr + start, G_ptr, matrices_ptr, first, k, B, True, T.PRECISION, T)
        tl.debug_barrier()
        for f0 in range(0, T.IMAGES * T.H * T.F, T.ROWS):
            offsets, inside = row_offsets(f0, T)
            X = tl.load(X_ptr + offsets, mask=inside, other=0.0)
            G = tl.load(G_ptr + offsets, mask=inside, other=0.0)
            dX, O1, dP1, dP2 = spectral_map_vjp(
                G, X, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T.PRECISION, T.ROWS, T
            )
            if INPUT_GRAD:
                tl.store(G_ptr + offsets, dX, mask=inside)
            if PARAMETER_GRADS:
                dw1 = product(tl.trans(X), dP1, dw1, T.PRECISION)
                dw2 = product(tl.trans(O1), dP2, dw2, T.PRECISION)
                db1 += tl.sum(dP1, axis=0)
                db2 += tl.sum(dP2, axis=0)
        tl.debug_barrier()
        if INPUT_GRAD:
            add_from_spectrum(
                G_ptr, dy_ptr + start, dx_ptr + start, matrices_ptr, first, k, B, True, T.PRECISION, T
            )
            tl.debug_barrier()
    if PARAMETER_GRADS:
        partials_ptr += share.to(tl.int64) * (2 * T.K * (2 * T.D * T.DH + T.D + T.DH))
        store_parameter_grads(partials_ptr, k, dw1, db1, T.D, T.DH, T.DP, T.DHP, T.K)
        partials_ptr += 2 * T.K * (T.D * T.DH + T.DH)
        store_parameter_grads(partials_ptr, k, dw2, db2, T.DH, T.D, T.DHP, T.DP, T.K)


@triton.jit
def store_parameter_grads(
    ptr,  # [2, K, I, O], then [2, K, O]
    k,
    dw,  # [2 IP, 2 OP]
    db,  # [2 OP]
    I: tl.constexpr,
    O: tl.constexpr,
    IP: tl.constexpr,
    OP: tl.constexpr,
    K: tl.constexpr,
):
    re, im = fold(dw, IP, OP)
    i, o = tl.arange(0, IP)[:, None], tl.arange(0, OP)[None, :]
    offset, inside = k * (I * O) + i * O + o, (i < I) & (o < O)
    tl.store(ptr + offset, re, mask=inside)
    tl.store(ptr + K * I * O + offset, im, mask=inside)
    column = tl.arange(0, 2 * OP)
    tl.store(ptr + 2 * K * I * O + (column & 1) * (K * O) + k * O + column // 2, db, mask=column < 2 * O)


@triton.jit(do_not_specialize=["shares"])
def sum_kernel(
    partials_ptr,  # [shares, dw1 | db1 | dw2 | db2]
    dw1_ptr,
    db1_ptr,
    dw2_ptr,
    db2_ptr,
    shares,
    DW: tl.constexpr,  # numbers in dw1, and in dw2
    DB1: tl.constexpr,
    DB2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The parameters' gradients: the shares in one fixed order, so that results repeat bit for bit."""
    TOTAL: tl.constexpr = 2 * DW + DB1 + DB2
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for share in range(0, shares):
        total += tl.load(partials_ptr + share * TOTAL + at, mask=at < TOTAL, other=0.0)
    tl.store(dw1_ptr + at, total, mask=at < DW)
    at -= DW
    tl.store(db1_ptr + at, total, mask=(at >= 0) & (at < DB1))
    at -= DB1
    tl.store(dw2_ptr + at, total, mask=(at >= 0) & (at < DW))
    at -= DW
    tl.store(db2_ptr + at, total, mask=(at >= 0) & (at < DB2))
