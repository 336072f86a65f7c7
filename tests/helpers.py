"""Cases, shapes, truth and bounds that all tests share."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer
from affnet_kernels.backends import reference
from affnet_kernels.spec import compute_dtype

DATA = Path(__file__).parent / "data"
PARAMETERS = ("w1", "b1", "w2", "b2")
THRESHOLD = 0.01

# The one table of bounds: relative L2 error of the mixer branch y - x, and of each gradient, against float64.
FORWARD_BOUND = {torch.float64: 1e-12, torch.float32: 1e-6}
GRADIENT_BOUND = {torch.float64: 1e-11, torch.float32: 1e-5}
# 16-bit: the error of y itself, as a multiple of that of rounding the float64 answer, plus a constant.
ROUNDING_FACTOR, ROUNDING_EXTRA = 1.25, 1e-3


class Shape(NamedTuple):
    batch: int
    channels: int
    height: int
    width: int
    blocks: int
    hidden_factor: int = 1

    @property
    def block_size(self) -> int:
        return self.channels // self.blocks


# One table of shapes; every row has its reason.
SHAPES = {
    "one pixel: DC only": Shape(2, 16, 1, 1, 2),
    "a row": Shape(2, 16, 1, 13, 2),
    "a column": Shape(2, 16, 13, 1, 2),
    "two by two: DC and Nyquist only": Shape(3, 8, 2, 2, 4),
    "one channel a block": Shape(2, 5, 6, 6, 5),
    "one block, odd channels": Shape(2, 7, 6, 10, 1),
    "odd both": Shape(2, 24, 5, 9, 4),
    "odd height": Shape(2, 24, 9, 8, 4),
    "odd width": Shape(2, 24, 8, 9, 4),
    "shipped, D=18": Shape(3, 144, 8, 8, 8),
    "shipped, D=40": Shape(2, 320, 8, 8, 8),
    "shipped, D=13": Shape(2, 104, 16, 16, 8),
    "shipped, D=20": Shape(2, 160, 16, 16, 8),
    "shipped, D=32": Shape(1, 256, 16, 16, 8),
    "shipped, D=24": Shape(2, 192, 8, 8, 8),
    "shipped, D=8": Shape(2, 64, 32, 32, 8),
    "shipped, D=12": Shape(1, 96, 32, 32, 8),
    "shipped, D=16": Shape(1, 128, 32, 32, 8),
    "224 pixels, 7x7": Shape(5, 144, 7, 7, 8),
    "224 pixels, 14x14": Shape(2, 104, 14, 14, 8),
    "224 pixels, 28x28": Shape(1, 64, 28, 28, 8),
    "320 pixels, 10x10": Shape(2, 80, 10, 10, 8),
    "320 pixels, 20x20": Shape(2, 48, 20, 20, 8),
    "320 pixels, 40x40": Shape(1, 32, 40, 40, 4),
    "512 pixels, 64x64": Shape(1, 32, 64, 64, 4),
    "primes": Shape(1, 12, 17, 23, 2),
    "larger primes": Shape(1, 6, 37, 41, 2),
    "rectangle": Shape(2, 16, 12, 20, 2),
    "wide rectangle": Shape(1, 16, 4, 60, 2),
    "hidden twice the block": Shape(2, 16, 6, 6, 2, 2),
    "hidden three times, odd": Shape(1, 10, 9, 7, 2, 3),
}


class Case(NamedTuple):
    """A call and what it must give; float64 where computed."""

    tensors: tuple[Tensor, ...]  # x, w1, b1, w2, b2
    dy: Tensor
    y: Tensor
    gradients: tuple[Tensor, ...]  # of x, w1, b1, w2, b2
    sparsity_threshold: float
    activation: str


def stored_case_names() -> list[str]:
    with np.load(DATA / "mixer_cases.npz") as arrays:
        return sorted({key.split("/")[0] for key in arrays})


@cache
def stored_case(name: str) -> Case:
    """A case of tests/data/mixer_cases.npz, see tests/data/README.md."""
    with np.load(DATA / "mixer_cases.npz") as arrays:

        def get(key: str) -> Tensor:
            return torch.from_numpy(arrays[f"{name}/{key}"])

        return Case(
            tuple(get(key) for key in ("x", *PARAMETERS)),
            get("grad_y"),
            get("y"),
            tuple(get(f"grad_{key}") for key in ("x", *PARAMETERS)),
            float(arrays[f"{name}/sparsity_threshold"]),
            str(arrays[f"{name}/activation"]),
        )


def make_parameters(shape: Shape, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Weights of scale 1/sqrt(D), so that the mixer branch is as large as the residual."""

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    K, D = shape.blocks, shape.block_size
    Dh = D * shape.hidden_factor
    return (
        randn(2, K, D, Dh) / math.sqrt(D),
        0.1 * randn(2, K, Dh),
        randn(2, K, Dh, D) / math.sqrt(Dh),
        0.1 * randn(2, K, D),
    )


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """x of `dtype`, and w1, b1, w2, b2 of its compute dtype."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.batch, shape.channels, shape.height, shape.width)
    x = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    return x, *(p.to(compute_dtype(dtype)) for p in make_parameters(shape, generator))


@cache
def make_case(shape: Shape, dtype: torch.dtype = torch.float32, activation: str = "relu") -> Case:
    """A random call of `shape` and its float64 answer, with no pre-activation on a kink of ReLU or soft-shrink.

    One gate that rounding flips would change a gradient by more than any bound.
    """
    for seed in range(100):
        tensors = make_inputs(shape, dtype, seed)
        if _distance_from_kinks(tensors, activation) > 3e-7:
            break
    else:
        raise AssertionError(f"no seed keeps {shape} off the kinks")
    x = tensors[0]
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1000), dtype=torch.float64).to(dtype)
    wide = tuple(tensor.double() for tensor in tensors)
    y = reference.mixer(wide[0], wide[1:], THRESHOLD, activation)
    gradients = reference.mixer_vjp(dy.double(), wide[0], wide[1:], THRESHOLD, activation, True, True)
    return Case(tensors, dy, y, gradients, THRESHOLD, activation)


def _distance_from_kinks(tensors: tuple[Tensor, ...], activation: str) -> float:
    x, w1, b1, w2, b2 = (tensor.double() for tensor in tensors)
    X = reference.spectrum(x, w1.shape[1])
    _, (P1, _, P2) = reference.mask(X, (w1, b1, w2, b2), THRESHOLD, activation)
    # Rows and columns that are real by symmetry are exactly zero in a pre-activation only if weights and biases are.
    relu = min(p.abs().min().item() for p in P1) if activation == "relu" else math.inf
    shrink = min((p.abs() - THRESHOLD).abs().min().item() for p in P2)
    return min(relu, shrink)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Relative L2 distance, in float64 on the CPU; infinite for anything that is not finite."""
    difference = (got.detach().cpu().double() - expected).norm() / expected.norm()
    return difference.item() if difference.isfinite() else math.inf


def branch_error(y: Tensor, case: Case) -> float:
    """Relative L2 error of the mixer branch: the residual would hide a wrong one."""
    x = case.tensors[0].double()
    return relative_error(y.detach().cpu().double() - x, case.y - x)


def leaf(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """A tensor like it that nothing else holds: cases are shared between tests."""
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(requires_grad)


def call(
    case: Case,
    backend: str,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    gradients: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y, and the five gradients if asked for, of `case` on `backend`; dtype None keeps the case's own."""
    tensors = [leaf(tensor.to(device=device, dtype=dtype), gradients) for tensor in case.tensors]
    y = fused_aff_mixer(
        *tensors, sparsity_threshold=case.sparsity_threshold, activation=case.activation, backend=backend
    )
    if not gradients:
        return y, ()
    return y, torch.autograd.grad(y, tensors, case.dy.to(y))


def assert_forward(y: Tensor, case: Case) -> None:
    assert y.shape == case.y.shape
    assert y.is_contiguous()
    if y.dtype in FORWARD_BOUND:
        assert branch_error(y, case) <= FORWARD_BOUND[y.dtype]
    else:
        assert_rounded(y, case.y)


def assert_rounded(got: Tensor, expected: Tensor) -> None:
    """A 16-bit result is as good as its float64 value rounded once."""
    floor = relative_error(expected.to(got.dtype), expected)
    assert relative_error(got, expected) <= ROUNDING_FACTOR * floor + ROUNDING_EXTRA


def assert_gradients(gradients: tuple[Tensor, ...], case: Case) -> None:
    for name, got, expected in zip(("x", *PARAMETERS), gradients, case.gradients, strict=True):
        assert got.shape == expected.shape, name
        if got.dtype in GRADIENT_BOUND:
            error = relative_error(got, expected)
            assert error <= GRADIENT_BOUND[got.dtype], f"d{name}: {error:.2e}"
        else:
            assert_rounded(got, expected)


def device_of(backend: str) -> str:
    """Where a backend's tests run: the GPU ones there, all others on the CPU."""
    return "cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu"


def why_not(backend: str, tensors: tuple[Tensor, ...], activation: str = "relu") -> list[str]:
    return available_backends(MixerSpec.of(tensors[0].to(device_of(backend)), tensors[1], activation))[backend]
