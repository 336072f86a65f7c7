"""The fused mixer: forward, backward, and the reduction of the backward's partial sums of parameter gradients.

A tile is T.IMAGES images of one channel block. A small tile stays in registers from load to store (`forward_tile`). The
spectrum of a larger one is staged in the program's own scratch memory, which the caches hold. Transforms then process
T.CHANNEL_CHUNK channels at a time and the map T.FREQUENCY_CHUNK frequencies, so that registers suffice at any size.

The steps of a staged tile are functions that Triton does not inline. Inlined into the loops around them, they would
have the addresses of all their exchanges through shared memory computed before the loops and kept in registers, more
than there are. On compute capability 10 they must be inlined, because products go through tensor memory there and a
function cannot use it.
"""

import triton
import triton.language as tl

from affnet_kernels.kernels.dft import (
    image_scales,
    nyquist_to_frequency,
    nyquist_to_space,
    of_rows,
    to_frequency,
    to_space,
)
from affnet_kernels.kernels.product import row_scales
from affnet_kernels.kernels.spectral_map import EXPONENT, spectral_map, spectral_map_vjp


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    x_ptr,  # [B, C, H, W]
    w1_ptr,  # [2, K, D, DH]
    b1_ptr,  # [2, K, DH]
    w2_ptr,  # [2, K, DH, D]
    b2_ptr,  # [2, K, D]
    matrices_ptr,
    scratch_ptr,  # [programs, 2 D, IMAGES * H * F] if tiles are staged
    y_ptr,  # [B, C, H, W]
    B,
    threshold,
    T: tl.constexpr,
):
    """y = F^-1(M(F x) * F x) + x."""
    stage: tl.constexpr = stage_chunk_noinline if T.NOINLINE else stage_chunk
    map_in_place: tl.constexpr = map_rows_noinline if T.NOINLINE else map_rows
    add: tl.constexpr = add_chunk_noinline if T.NOINLINE else add_chunk
    scratch_ptr += tl.program_id(0).to(tl.int64) * (2 * T.D * T.IMAGES * T.H * T.F)
    for tile in range(tl.program_id(0), tl.cdiv(B, T.IMAGES) * T.K, tl.num_programs(0)):
        first, k = tile // T.K * T.IMAGES, tile % T.K
        images = tl.minimum(B - first, T.IMAGES)
        start = first * tl.full((), T.K * T.D * T.H * T.W, tl.int64)
        if T.STAGED:
            for c0 in range(0, T.D, T.CHANNEL_CHUNK):
                stage(x_ptr + start, scratch_ptr, matrices_ptr, images, k, c0, False, T.PASSES, T)
            tl.debug_barrier()
            for f0 in range(0, T.IMAGES * T.H * T.F, T.FREQUENCY_CHUNK):
                map_in_place(scratch_ptr, f0, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T)
            tl.debug_barrier()
            for c0 in range(0, T.D, T.CHANNEL_CHUNK):
                add(scratch_ptr, x_ptr + start, y_ptr + start, matrices_ptr, images, k, c0, False, T)
            tl.debug_barrier()
        else:
            forward_tile(
                x_ptr + start, w1_ptr, b1_ptr, w2_ptr, b2_ptr, matrices_ptr, y_ptr + start, images, k, threshold, T
            )


@triton.jit(do_not_specialize=["B"])
def backward_kernel(
    dy_ptr,  # [B, C, H, W]
    x_ptr,  # [B, C, H, W]
    w1_ptr,  # [2, K, D, DH]
    b1_ptr,  # [2, K, DH]
    w2_ptr,  # [2, K, DH, D]
    b2_ptr,  # [2, K, D]
    matrices_ptr,
    workspace_ptr,  # [programs, PARTIAL_SUMS] if PARAMETER_GRADS, then [programs, 2, 2 D, IMAGES * H * F]
    dx_ptr,  # [B, C, H, W]
    B,
    threshold,
    INPUT_GRAD: tl.constexpr,
    PARAMETER_GRADS: tl.constexpr,
    T: tl.constexpr,
):
    """dx, and the program's partial sums of the parameter gradients: of block k, over every (programs / K)-th tile."""
    stage: tl.constexpr = stage_chunk_noinline if T.NOINLINE else stage_chunk
    map_vjp_in_place: tl.constexpr = map_rows_vjp_noinline if T.NOINLINE else map_rows_vjp
    add: tl.constexpr = add_chunk_noinline if T.NOINLINE else add_chunk
    program, k = tl.program_id(0).to(tl.int64), tl.program_id(0) % T.K
    partials_ptr = workspace_ptr
    X_ptr = workspace_ptr + program * (4 * T.D * T.IMAGES * T.H * T.F)
    if PARAMETER_GRADS:
        partials_ptr += program * T.PARTIAL_SUMS
        X_ptr += tl.num_programs(0).to(tl.int64) * T.PARTIAL_SUMS
    G_ptr = X_ptr + 2 * T.D * T.IMAGES * T.H * T.F
    first = tl.program_id(0) // T.K
    for tile in range(first, tl.cdiv(B, T.IMAGES), tl.num_programs(0) // T.K):
        images = tl.minimum(B - tile * T.IMAGES, T.IMAGES)
        start = tile * tl.full((), T.IMAGES * T.K * T.D * T.H * T.W, tl.int64)
        for c0 in range(0, T.D, T.CHANNEL_CHUNK):
            stage(x_ptr + start, X_ptr, matrices_ptr, images, k, c0, False, 3, T)
            stage(dy_ptr + start, G_ptr, matrices_ptr, images, k, c0, True, T.PASSES, T)
        tl.debug_barrier()
        for f0 in range(0, T.IMAGES * T.H * T.F, T.FREQUENCY_CHUNK):
            map_vjp_in_place(
                X_ptr,
                G_ptr,
                partials_ptr,
                tile - first + f0,
                f0,
                k,
                w1_ptr,
                b1_ptr,
                w2_ptr,
                b2_ptr,
                threshold,
                PARAMETER_GRADS,
                T,
            )
            tl.debug_barrier()
        if INPUT_GRAD:
            for c0 in range(0, T.D, T.CHANNEL_CHUNK):
                add(G_ptr, dy_ptr + start, dx_ptr + start, matrices_ptr, images, k, c0, True, T)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["programs_per_block"])
def sum_kernel(
    partials_ptr,  # [programs_per_block, K, PARTIAL_SUMS]
    dw1_ptr,  # [2, K, D, DH]
    db1_ptr,  # [2, K, DH]
    dw2_ptr,  # [2, K, DH, D]
    db2_ptr,  # [2, K, D]
    programs_per_block,
    K: tl.constexpr,
    D: tl.constexpr,
    DH: tl.constexpr,
    PARTIAL_SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The parameter gradients: partial sums are added in a fixed order, so that results repeat bit for bit."""
    first_layer: tl.constexpr = (2 * D + 1) * 2 * DH
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        sum_layer(partials_ptr, dw1_ptr, db1_ptr, at, programs_per_block, K, D, DH, PARTIAL_SUMS)
    else:
        sum_layer(partials_ptr + first_layer, dw2_ptr, db2_ptr, at, programs_per_block, K, DH, D, PARTIAL_SUMS)


@triton.jit
def sum_layer(
    partials_ptr,  # [programs_per_block, K, PARTIAL_SUMS], of which the layer's are the first [2 I + 1, 2 O]
    dw_ptr,  # [2, K, I, O]
    db_ptr,  # [2, K, O]
    at,  # indices into dw, then db
    programs_per_block,
    K: tl.constexpr,
    I: tl.constexpr,
    O: tl.constexpr,
    PARTIAL_SUMS: tl.constexpr,
):
    WEIGHTS: tl.constexpr = 2 * K * I * O
    is_weight = at < WEIGHTS
    inside = at < WEIGHTS + 2 * K * O
    index = tl.where(is_weight, at, at - WEIGHTS)
    per_block = tl.where(is_weight, I * O, O)
    part, k, rest = index // (K * per_block), index // per_block % K, index % per_block
    # Either part of a complex weight occurs twice in the stacked real one: (re, im; -im, re).
    row = tl.where(is_weight, 2 * (rest // O), 2 * I)
    column = 2 * (rest % O) + part
    at_first = k * PARTIAL_SUMS + row * (2 * O) + column
    at_second = k * PARTIAL_SUMS + (row + 1) * (2 * O) + (column ^ 1)
    total = tl.full(at.shape, 0.0, tl.float32)
    twin = tl.full(at.shape, 0.0, tl.float32)
    for program in range(0, programs_per_block):
        ptr = partials_ptr + program * tl.full((), K * PARTIAL_SUMS, tl.int64)
        total += tl.load(ptr + at_first, mask=inside, other=0.0)
        twin += tl.load(ptr + at_second, mask=is_weight, other=0.0)
    total += tl.where(part == 0, twin, -twin)
    tl.store(dw_ptr + at, total, mask=is_weight)
    tl.store(db_ptr + index, total, mask=inside & (at >= WEIGHTS))


@triton.jit
def forward_tile(
    x_ptr,  # the tile's first image
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    matrices_ptr,
    y_ptr,
    images,
    k,
    threshold,
    T: tl.constexpr,
):
    """One tile, in registers from load to store."""
    N: tl.constexpr = T.IMAGES * T.DP
    ROWS: tl.constexpr = T.IMAGES * T.HP * T.FP
    offsets, inside = image_offsets(images, k, 0, N, T)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    scale, undo = image_scales(x, T.EXPONENT, T)
    undo *= (T.H * T.W) ** -0.5
    xs = x * scale
    X = to_frequency(xs, matrices_ptr, False, T.PASSES, N, T)
    X = tl.permute(tl.reshape(X, (T.HP, 2, T.IMAGES, T.DP, T.FP)), (2, 0, 4, 3, 1))
    X = in_one_half(tl.reshape(X, (ROWS, 2 * T.DP)), T)
    Y = spectral_map(X, of_rows(undo, ROWS, T), k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, ROWS, T)
    Y = tl.permute(tl.reshape(Y, (T.IMAGES, T.HP, T.FP, T.DP, 2)), (1, 4, 0, 3, 2))
    Y = tl.reshape(Y, (2 * T.HP, N, T.FP))
    y = to_space(Y, undo, matrices_ptr, False, T.PASSES, N, T)
    if T.NYQUIST:
        COLUMN: tl.constexpr = T.IMAGES * T.HP
        Z = nyquist_to_frequency(xs, matrices_ptr, T.PASSES, N, T)
        Z = tl.permute(tl.reshape(Z, (T.HP, 2, T.IMAGES, T.DP)), (2, 0, 3, 1))
        Z = in_one_half(tl.reshape(Z, (COLUMN, 2 * T.DP)), T)
        Z = spectral_map(Z, of_rows(undo, COLUMN, T), k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, COLUMN, T)
        Z = tl.permute(tl.reshape(Z, (T.IMAGES, T.HP, T.DP, 2)), (1, 3, 0, 2))
        Z = tl.reshape(Z, (2 * T.HP, N, 1))
        y += nyquist_to_space(Z, undo, matrices_ptr, T.PASSES, N, T)
    # Loaded again, from the cache: keeping x would take more registers than there are.
    y += tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def in_one_half(X, T: tl.constexpr):
    """A spectrum as one pass needs it, in half the registers, until the mask has been computed."""
    if T.PASSES == 1:
        return X.to(tl.float16)
    else:
        return X


@triton.jit
def stage_chunk(
    x_ptr,  # the tile's first image
    spectrum_ptr,  # [2 D, IMAGES * H * F]
    matrices_ptr,
    images,
    k,
    c0,
    ADJOINT: tl.constexpr,
    PASSES: tl.constexpr,
    T: tl.constexpr,
):
    """Transforms channels c0, c0 + 1, ... of block k to the frequency domain."""
    N: tl.constexpr = T.IMAGES * T.CHANNEL_CHUNK
    offsets, inside = image_offsets(images, k, c0, N, T)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    targets, kept = spectrum_offsets(c0, N, T)
    scale, undo = image_scales(x, T.EXPONENT, T)
    undo *= (T.H * T.W) ** -0.5
    x *= scale
    tl.store(spectrum_ptr + targets, to_frequency(x, matrices_ptr, ADJOINT, PASSES, N, T) * undo, mask=kept)
    if T.NYQUIST:
        targets, kept = nyquist_offsets(c0, N, T)
        tl.store(spectrum_ptr + targets, nyquist_to_frequency(x, matrices_ptr, PASSES, N, T) * undo, mask=kept)


@triton.jit
def map_rows(spectrum_ptr, f0, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T: tl.constexpr):
    """Applies the spectral map to frequencies f0, f0 + 1, ..., in place."""
    offsets, inside = row_offsets(f0, T)
    X = tl.load(spectrum_ptr + offsets, mask=inside, other=0.0)
    scale, undo = row_scales(X, EXPONENT)
    Y = spectral_map(X * scale, undo, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, threshold, T.FREQUENCY_CHUNK, T)
    tl.store(spectrum_ptr + offsets, Y * undo, mask=inside)


@triton.jit
def map_rows_vjp(
    X_ptr,  # [2 D, IMAGES * H * F]
    G_ptr,  # [2 D, IMAGES * H * F], replaced by dX
    partials_ptr,  # [2 D + 1, 2 DH], then [2 DH + 1, 2 D]
    before,  # 0: this is the program's first chunk, and its partial sums start from zero
    f0,
    k,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    threshold,
    PARAMETER_GRADS: tl.constexpr,
    T: tl.constexpr,
):
    offsets, inside = row_offsets(f0, T)
    X = tl.load(X_ptr + offsets, mask=inside, other=0.0)
    G = tl.load(G_ptr + offsets, mask=inside, other=0.0)
    dX = spectral_map_vjp(
        G, X, k, w1_ptr, b1_ptr, w2_ptr, b2_ptr, partials_ptr, before, threshold, PARAMETER_GRADS, T.FREQUENCY_CHUNK, T
    )
    tl.store(G_ptr + offsets, dX, mask=inside)


@triton.jit
def add_chunk(
    spectrum_ptr,  # [2 D, IMAGES * H * F]
    x_ptr,  # the residual's first image
    y_ptr,
    matrices_ptr,
    images,
    k,
    c0,
    ADJOINT: tl.constexpr,
    T: tl.constexpr,
):
    """Transforms channels c0, c0 + 1, ... of block k back to space and adds the residual."""
    N: tl.constexpr = T.IMAGES * T.CHANNEL_CHUNK
    sources, kept = spectrum_offsets(c0, N, T)
    Y = tl.load(spectrum_ptr + sources, mask=kept, other=0.0)
    y = to_space(Y, 1.0, matrices_ptr, ADJOINT, T.PASSES, N, T)
    if T.NYQUIST:
        sources, kept = nyquist_offsets(c0, N, T)
        Z = tl.load(spectrum_ptr + sources, mask=kept, other=0.0)
        y += nyquist_to_space(Z, 1.0, matrices_ptr, T.PASSES, N, T)
    offsets, inside = image_offsets(images, k, c0, N, T)
    y += tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def image_offsets(images, k, c0, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [HP, N, WP]
    """Where channels c0, c0 + 1, ... of block k are in a tile; N runs over its images and within each over channels."""
    CHANNELS: tl.constexpr = N // T.IMAGES
    h, n, w = tl.arange(0, T.HP)[:, None, None], tl.arange(0, N)[None, :, None], tl.arange(0, T.WP)[None, None, :]
    image, c = n // CHANNELS, c0 + n % CHANNELS
    offset = (image * (T.K * T.D) + k * T.D + c) * (T.H * T.W) + h * T.W + w
    return offset, (h < T.H) & (w < T.W) & (c < T.D) & (image < images)


@triton.jit
def spectrum_offsets(c0, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [2 * HP, N, FP]
    """Where the frequencies of a channel chunk are in [2 D, IMAGES * H * F]."""
    offset, kept = column_offsets(c0, N, T)
    v = tl.arange(0, T.FP)[None, None, :]
    return offset + v, kept & (v < T.F)


@triton.jit
def nyquist_offsets(c0, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [2 * HP, N, 1]
    offset, kept = column_offsets(c0, N, T)
    return offset + T.FP, kept


@triton.jit
def column_offsets(c0, N: tl.constexpr, T: tl.constexpr):  # offsets and mask [2 * HP, N, 1], of v = 0
    kr, n = tl.arange(0, 2 * T.HP)[:, None, None], tl.arange(0, N)[None, :, None]
    image, c = n // T.CHANNEL_CHUNK, c0 + n % T.CHANNEL_CHUNK
    offset = (2 * c + kr % 2) * (T.IMAGES * T.H * T.F) + image * (T.H * T.F) + kr // 2 * T.F
    return offset, (kr < 2 * T.H) & (c < T.D)


@triton.jit
def row_offsets(f0, T: tl.constexpr):  # offsets and mask [ROWS, 2 DP]
    f, c = f0 + tl.arange(0, T.FREQUENCY_CHUNK)[:, None], tl.arange(0, 2 * T.DP)[None, :]
    return c * (T.IMAGES * T.H * T.F) + f, (f < T.IMAGES * T.H * T.F) & (c < 2 * T.D)


stage_chunk_noinline = triton.jit(stage_chunk.fn, noinline=True)
map_rows_noinline = triton.jit(map_rows.fn, noinline=True)
map_rows_vjp_noinline = triton.jit(map_rows_vjp.fn, noinline=True)
add_chunk_noinline = triton.jit(add_chunk.fn, noinline=True)
