"""The one-launch bfloat16 kernel on the host emulator: its library, its calls, its plans."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from affnet_kernels.backends.reference import mixer
from tests.helpers import relative_error
from tests.test_cuda_emulated import HOST, ROOT, pointer

FEW_INSTANCES = "-DAFFNET_FEW_INSTANCES"  # D = 13 to 16: 16 x 16 as it is, up to 32 x 32 with padding
SHARED_BYTES = 227 * 1024


class HalfFacts(ctypes.Structure):
    """affnet::HalfFacts of csrc/cuda/fused/half.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("B", "H", "W", "K", "D", "Dh", "alignment", "shared_bytes")]


class HalfPlan(ctypes.Structure):
    """affnet::HalfPlan."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("tiles", "quads", "whole", "threads", "shared_bytes", "granule")),
        ("ctas", ctypes.c_int64),
    ]


def build(source: Path, target: Path, *flags: str) -> ctypes.CDLL:
    """A library of the kernels under `source`, compiled for the host."""
    command = ["g++", "-std=c++20", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC", *flags]
    includes = [f"-I{source}", f"-I{HOST}"]
    done = subprocess.run(
        [*command, *includes, str(HOST / "emulated_fused_half.cpp"), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    library.half_forward.restype = ctypes.c_char_p
    return library


class Call(NamedTuple):
    batch: int
    blocks: int
    channels: int  # of a block
    height: int
    width: int
    activation: str = "relu"
    scale: float = 1.0  # of x
    threshold: float = 0.01
    ctas: int = 0  # instead of the plan's
    alignment: int = 16  # of x and y, in bytes


def plan_of(library: ctypes.CDLL, call: Call, shared_bytes: int = SHARED_BYTES) -> HalfPlan:
    plan = HalfPlan()
    library.half_plan(ctypes.byref(facts_of(call, shared_bytes)), ctypes.byref(plan))
    return plan


def facts_of(call: Call, shared_bytes: int = SHARED_BYTES) -> HalfFacts:
    D = call.channels
    return HalfFacts(call.batch, call.height, call.width, call.blocks, D, D, call.alignment, shared_bytes)


class Inputs(NamedTuple):
    x: Tensor  # [B, K D, H, W]
    parameters: tuple[Tensor, ...]  # w1 [2, K, D, D], b1 [2, K, D], w2 [2, K, D, D], b2 [2, K, D]


def inputs_of(call: Call) -> Inputs:
    """Weights of scale 1/sqrt(D) and biases that matter."""
    generator = torch.Generator().manual_seed(call.channels + 100 * call.height)
    K, D = call.blocks, call.channels
    x = torch.randn(call.batch, K * D, call.height, call.width, generator=generator) * call.scale
    weights = [torch.randn(2, K, D, D, generator=generator) * D**-0.5 for _ in range(2)]
    biases = [torch.randn(2, K, D, generator=generator) * 0.3 for _ in range(2)]
    return Inputs(x.bfloat16(), (weights[0], biases[0], weights[1], biases[1]))


def aligned(elements: int, alignment: int) -> np.ndarray:
    """Zeros whose address is a multiple of `alignment` bytes and of no larger power of two up to 16."""
    memory = np.zeros(elements + 32, np.int16)
    first = (-memory.ctypes.data % 32 + (alignment if alignment < 16 else 0)) // 2
    return memory[first : first + elements]


class Answer(NamedTuple):
    y: Tensor  # [B, K D, H, W]
    report: str


def emulate(library: ctypes.CDLL, call: Call, inputs: Inputs, count_banks: bool = False) -> Answer:
    x, y = (aligned(inputs.x.numel(), call.alignment) for _ in range(2))
    x[:] = inputs.x.view(torch.int16).numpy().ravel()
    facts = facts_of(call)
    parameters = [np.ascontiguousarray(p.numpy()) for p in inputs.parameters]
    report = library.half_forward(
        ctypes.byref(facts),
        *(pointer(array) for array in (x, y, *parameters)),
        ctypes.c_float(call.threshold),
        library.half_activation(call.activation.encode()),
        ctypes.c_int64(call.ctas),
        ctypes.c_bool(count_banks),
    )
    return Answer(torch.from_numpy(y.copy()).view(torch.bfloat16).view(inputs.x.shape), report.decode())


class Errors(NamedTuple):
    y: float  # relative, against float64
    rounding: float  # of the float64 answer to bfloat16
    branch: float  # of y - x, without what rounding y costs


def errors(answer: Answer, call: Call, inputs: Inputs) -> Errors:
    x = inputs.x.double()
    expected = mixer(x, tuple(p.double() for p in inputs.parameters), call.threshold, call.activation)
    error, rounding = relative_error(answer.y, expected), relative_error(expected.bfloat16(), expected)
    share = float((expected - x).norm() / expected.norm())
    return Errors(error, rounding, max(0.0, error**2 - rounding**2) ** 0.5 / share)


__all__ = ["ROOT", "Answer", "Call", "Errors", "Inputs", "build", "emulate", "errors", "inputs_of", "plan_of"]
