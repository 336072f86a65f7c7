"""The backend "triton": eligibility and launch; the configurations are in `triton_launch`."""

from __future__ import annotations

import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from affnet_kernels.backends.reference import hermitian_weight
from affnet_kernels.backends.triton_launch import BACKWARD, FORWARD, OPTIONS, Tile, find_row, options, tile_of
from affnet_kernels.spec import Gradients, MixerSpec, Parameters

NAME = "triton"
MAX_SIZE = 32  # of H and W
MAX_CHANNELS = 64  # of D and Dh
SUM_BLOCK = 256


def unsupported(
    spec: MixerSpec | None,
) -> list[str]:
    """Reasons why the kernels cannot run `spec`, in words; None asks about this machine alone."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed; pip install triton")
    if spec is None:
        if not (interpreted() or torch.cuda.is_available()):
            reasons.append("no CUDA device is available")
        return reasons
    if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"expected float32, float16 or bfloat16, got {str(spec.dtype).removeprefix('torch.')}")
    if max(spec.height, spec.width) > MAX_SIZE:
        reasons.append(f"expected H and W up to {MAX_SIZE}, got {spec.height} x {spec.width}")
    if max(spec.block_size, spec.hidden_size) > MAX_CHANNELS:
        reasons.append(
            f"expected up to {MAX_CHANNELS} channels and hidden channels a block, "
            f"got {spec.block_size} and {spec.hidden_size}"
        )
    if not reasons and spec.channels * spec.height * spec.width > 2**28:  # offsets within a tile are 32-bit
        reasons.append(f"expected up to 2**28 elements an image, got {spec.channels * spec.height * spec.width}")
    if spec.device.type == "cuda":
        reasons += _device_reasons(spec, fits=not reasons)
    elif not (interpreted() and spec.device.type == "cpu"):
        reasons.append(f"expected a tensor on cuda, got one on {spec.device.type}")
    return reasons


def _device_reasons(
    spec: MixerSpec,
    fits: bool,  # there are rows for its sizes
) -> list[str]:
    if torch.version.hip is not None:
        return ["expected an NVIDIA device, got an AMD one"]
    major, minor, shared, _ = _facts(spec.device)
    if major < 8:
        return [f"expected compute capability 8.0 or more, got {major}.{minor}"]
    needed = max(find_row(table, spec, major).shared for table in (FORWARD, BACKWARD)) if fits else 0
    if needed > shared:
        return [f"expected a device with {needed} KiB of shared memory a block for these sizes, got {shared} KiB"]
    return []


def forward(
    spec: MixerSpec,
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
) -> Tensor:  # [B, C, H, W]
    """One launch."""
    from affnet_kernels.kernels.mixer import forward_kernel

    x, w1, b1, w2, b2 = (tensor.contiguous() for tensor in (x, *parameters))
    capability, *_, multiprocessors = _facts(x.device)
    row = find_row(FORWARD, spec, capability)
    tile = tile_of(row, spec, capability)
    tiles = -(-spec.batch // row.images) * spec.blocks
    programs = min(tiles, row.programs * multiprocessors) if tile.STAGED else tiles
    y = torch.empty_like(x)
    scratch = _scratch(x, programs * 2 * spec.block_size, tile) if tile.STAGED else x
    with _on(x.device):
        forward_kernel[(programs,)](
            x,
            w1,
            b1,
            w2,
            b2,
            _matrices(tile.H, tile.W, tile.HP, tile.WP, tile.FP, x.device),
            scratch,
            y,
            spec.batch,
            sparsity_threshold,
            tile,
            **options(row),
        )
    return y


def backward(
    spec: MixerSpec,
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
    input_grad: bool,
    parameter_grads: bool,
) -> Gradients:
    """One launch, and a second that sums the programs' shares of the parameters' gradients where they are asked for."""
    from affnet_kernels.kernels.mixer import backward_kernel, sum_kernel

    dy, x, w1, b1, w2, b2 = (tensor.contiguous() for tensor in (dy, x, *parameters))
    capability, *_, multiprocessors = _facts(x.device)
    row = find_row(BACKWARD, spec, capability)
    tile = tile_of(row, spec, capability)
    groups = -(-spec.batch // row.images)
    shares = min(groups, max(1, row.programs * multiprocessors // spec.blocks))
    dx = torch.empty_like(x) if input_grad else x.new_empty(0)
    gradients = [torch.empty_like(p) if parameter_grads else p.new_empty(0) for p in (w1, b1, w2, b2)]
    sums = max(w1.numel() + b1.numel(), w2.numel() + b2.numel())
    stacked = 8 * tile.D * tile.DH + 2 * tile.D + 2 * tile.DH
    partials = x.new_empty((shares, tile.K, stacked if parameter_grads else 0), dtype=torch.float32)
    with _on(x.device):
        backward_kernel[(shares * spec.blocks,)](
            dy,
            x,
            w1,
            b1,
            w2,
            b2,
            _matrices(tile.H, tile.W, tile.HP, tile.WP, tile.FP, x.device),
            _scratch(x, shares * spec.blocks * 4 * spec.block_size, tile),
            dx,
            partials,
            spec.batch,
            sparsity_threshold,
            input_grad,
            parameter_grads,
            tile,
            **options(row),
        )
        if parameter_grads:
            sum_kernel[(-(-sums // SUM_BLOCK), 2)](
                partials, *gradients, shares, tile.K, tile.D, tile.DH, SUM_BLOCK, **OPTIONS
            )
    return dx, *gradients  # type: ignore[return-value]


def _scratch(x: Tensor, rows: int, tile: Tile) -> Tensor:
    return x.new_empty((rows, tile.IMAGES * tile.H * tile.F), dtype=torch.float32)


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _facts(
    device: torch.device,
) -> tuple[int, int, int, int]:
    """Compute capability, KiB of shared memory a block, multiprocessors."""
    if device.type != "cuda":
        return 9, 0, 227, 2  # the interpreter: so few that programs take several tiles each
    properties: Any = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin // 1024
    return properties.major, properties.minor, shared, properties.multi_processor_count


@lru_cache(maxsize=256)
def _matrices(
    height: int,
    width: int,
    padded_height: int,
    padded_width: int,
    padded_half: int,
    device: torch.device,
) -> Tensor:  # analysis along W [WP, FP, 2], its inverse [FP, 2, WP], DFT along H [HP, 2, HP, 2], in a row; float16
    """The matrices of `kernels.dft`, their high halves and then their low ones."""

    def angles(rows: int, columns: int, period: int) -> Tensor:
        index = torch.outer(torch.arange(rows), torch.arange(columns)) % period
        return index.double() * (2 * math.pi / period)

    half = min(width // 2 + 1, padded_half)
    angle = angles(width, half, width)
    analysis = torch.zeros(padded_width, padded_half, 2, dtype=torch.float64)
    analysis[:width, :half] = torch.stack((angle.cos(), -angle.sin()), -1)
    if width % 2 == 0 and half > width // 2:
        analysis[:width, width // 2, 1] = 0  # sin(pi w) is not zero in floating point
    weight = hermitian_weight(width, analysis)[:half]
    synthesis = torch.zeros(padded_half, 2, padded_width, dtype=torch.float64)
    synthesis[:half, :, :width] = analysis[:width, :half].permute(1, 2, 0) * weight[:, None, None]

    angle = angles(height, height, height)
    along_h = torch.zeros(padded_height, 2, padded_height, 2, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    for r, s, part in ((0, 0, cos), (0, 1, sin), (1, 0, -sin), (1, 1, cos)):
        along_h[:height, r, :height, s] = part
    exact = torch.cat([matrix.flatten() for matrix in (analysis, synthesis, along_h)])
    high = exact.half()
    return torch.cat((high, (exact - high).half())).to(device)
