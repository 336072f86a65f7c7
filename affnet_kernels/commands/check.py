"""`check`: every backend against float64 on this machine."""

from __future__ import annotations

import argparse
import time

import torch

from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer
from affnet_kernels.spec import compute_dtype

# B, C, H, W, K: the shipped stages at 256 pixels, one at 224, and a rectangle of primes.
SHAPES = ((2, 64, 32, 32, 8), (2, 104, 16, 16, 8), (2, 320, 8, 8, 8), (2, 144, 7, 7, 8), (1, 26, 11, 13, 2))
# Relative L2 error against float64: of the mixer branch and of the worst gradient; 16-bit: of y and of dx.
BOUNDS = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (4e-3, 4e-3)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """Run every backend that can run here against float64, print a table; 1 if anything is out of bounds."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    print(f"{'backend':<10} {'device':<6} {'x [B, C, H, W]':<18} {'dtype':<9} {'forward':>9} {'gradient':>9}  result")
    failures = 0
    start = time.perf_counter()
    for dtype in BOUNDS:
        for shape in SHAPES:
            tensors = _inputs(shape, dtype)
            truth = _results(tuple(t.double() for t in tensors), "reference")
            for device in devices:
                spec = MixerSpec.of(tensors[0].to(device), tensors[1])
                names = [name for name, reasons in available_backends(spec).items() if not reasons]
                failures += sum(_check_one(name, device, tensors, truth) for name in names)
    print(f"\n{failures or 'no'} failures, {time.perf_counter() - start:.1f} s; errors are relative L2 against float64")
    return int(failures > 0)


def _check_one(
    name: str,
    device: str,
    tensors: tuple[torch.Tensor, ...],
    truth: tuple[torch.Tensor, ...],
) -> bool:
    """Print one row of the table; True if the backend failed."""
    x = tensors[0]
    try:
        y, *gradients = (t.cpu() for t in _results(tuple(t.to(device) for t in tensors), name))
    except Exception as error:
        forward, gradient, result = float("nan"), float("nan"), f"FAIL: {type(error).__name__}: {error}"
    else:
        residual = x.double() if x.dtype == torch.float32 else 0
        forward = _error(y.double() - residual, truth[0] - residual)
        gradient = max(_error(got, want) for got, want in zip(gradients, truth[1:], strict=True))
        forward_bound, gradient_bound = BOUNDS[x.dtype]
        result = "ok" if forward <= forward_bound and gradient <= gradient_bound else "FAIL: out of bounds"
    dtype = str(x.dtype).removeprefix("torch.")
    print(f"{name:<10} {device:<6} {list(x.shape)!s:<18} {dtype:<9} {forward:>9.1e} {gradient:>9.1e}  {result}")
    return result != "ok"


def _inputs(
    shape: tuple[int, int, int, int, int],  # B, C, H, W, K
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """x, w1, b1, w2, b2 with SiLU-friendly weights of scale 1/sqrt(D), so that the mask matters."""
    *size, blocks = shape
    channels = size[1] // blocks
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    w1, w2 = (randn(2, blocks, channels, channels) / channels**0.5 for _ in range(2))
    b1, b2 = (0.1 * randn(2, blocks, channels) for _ in range(2))
    wide = compute_dtype(dtype)
    return randn(*size).to(dtype), w1.to(wide), b1.to(wide), w2.to(wide), b2.to(wide)


def _results(
    tensors: tuple[torch.Tensor, ...],
    backend: str,
) -> tuple[torch.Tensor, ...]:
    """y and the five gradients; SiLU and no soft-shrink, whose gates rounding cannot flip."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = fused_aff_mixer(*leaves, sparsity_threshold=0.0, activation="silu", backend=backend)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.cos(leaves[0]).detach())


def _error(
    got: torch.Tensor,
    expected: torch.Tensor,
) -> float:
    return float((got.double() - expected).norm() / expected.norm())
