"""The one-launch float32 kernel on the host emulator (tests/cuda_host/emulator.h) against float64."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import reference
from tests.helpers import FORWARD_BOUND, THRESHOLD, Case, Shape, branch_error, make_inputs
from tests.test_cuda_emulated import CLEAN, HOST, ROOT, mutated, pointer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SHARED_BYTES = 227 * 1024  # that a CTA may have on compute capability 9.0


class Strides(ctypes.Structure):
    """affnet::PlaneStrides of csrc/cuda/fused/single_plan.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("row", "plane")]


class Plan(ctypes.Structure):
    """affnet::SinglePlan."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("instance", "images", "threads", "shared_bytes", "ctas")),
        ("strides", Strides),
        ("ctas_per_block", ctypes.c_int64),
    ]


class Arguments(ctypes.Structure):
    """affnet::SingleArguments of csrc/cuda/fused/single_arguments.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "w1", "b1", "w2", "b2")),
        *((name, ctypes.c_int64) for name in ("B", "ctas_per_block")),
        *((name, ctypes.c_int) for name in ("K", "D", "H", "W", "images")),
        ("strides", Strides),
        ("threshold", ctypes.c_float),
        ("activation", ctypes.c_int),
    ]


def build(source: Path, target: Path, instances: str, level: str = "-O1") -> ctypes.CDLL:
    """A library of the kernels under `source` and their instances {H, W, quads}."""
    command = ["g++", level, "-std=c++20", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    done = subprocess.run(
        [
            *command,
            f"-DAFFNET_SINGLE_INSTANCES={instances}",
            f"-I{source}",
            f"-I{HOST}",
            str(HOST / "emulated_single.cpp"),
            "-o",
            str(target),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    library.run_single.restype = ctypes.c_char_p
    library.plan_single.restype = None
    sizes = (ctypes.c_int * 2)()
    library.single_bytes(sizes)
    assert [*sizes] == [ctypes.sizeof(Plan), ctypes.sizeof(Arguments)]
    return library


class Answer(NamedTuple):
    y: np.ndarray
    report: str
    plan: Plan


def plan_of(library: ctypes.CDLL, shape: Shape, shared_bytes: int = SHARED_BYTES) -> Plan:
    plan = Plan()
    D = shape.block_size
    sizes = (shape.batch, shape.height, shape.width, shape.blocks, D, D * shape.hidden_factor)
    library.plan_single(*(ctypes.c_int64(size) for size in sizes), shared_bytes, ctypes.byref(plan))
    return plan


def emulate(
    library: ctypes.CDLL, case: Case, ctas_per_block: int = 1, images: int = 0, count_banks: bool = False
) -> Answer:
    """The forward pass, by fewer CTAs than the plan has and, if asked for, other images per CTA."""
    x, w1, b1, w2, b2 = (np.ascontiguousarray(tensor.float().numpy()) for tensor in case.tensors)
    B, C, H, W = x.shape
    K, D = w1.shape[1:3]
    plan = plan_of(library, Shape(B, C, H, W, K))
    assert plan.instance >= 0
    if images:
        weights = library.layer_bytes(plan.instance)
        plan.shared_bytes = weights + (plan.shared_bytes - weights) // plan.images * images
        plan.images = images
    plan.ctas_per_block = ctas_per_block or plan.ctas_per_block
    y = np.full_like(x, np.nan)
    arguments = Arguments(
        *(pointer(array) for array in (x, y, w1, b1, w2, b2)),
        *(B, plan.ctas_per_block, K, D, H, W, plan.images, plan.strides, case.sparsity_threshold),
        ACTIVATIONS_IN_CPP.index(case.activation),
    )
    report = library.run_single(ctypes.byref(arguments), ctypes.byref(plan), ctypes.c_bool(count_banks))
    return Answer(y, report.decode(), plan)


ACTIVATIONS_IN_CPP = ("relu", "silu", "gelu", "tanh", "identity")


def make_case(shape: Shape, activation: str = "relu", factor: float = 1.0, seed: int = 0) -> Case:
    """A call and its float64 answer; x of scale `factor`."""
    x, *parameters = make_inputs(shape, seed=seed)
    x = x * factor
    wide = [tensor.double() for tensor in (x, *parameters)]
    y = reference.mixer(wide[0], tuple(wide[1:]), THRESHOLD, activation)
    return Case((x, *parameters), x, y, (), THRESHOLD, activation)


def assert_right(answer: Answer, case: Case) -> None:
    assert answer.report.startswith(CLEAN), answer.report
    assert branch_error(torch.from_numpy(answer.y), case) <= FORWARD_BOUND[torch.float32]


def is_right(answer: Answer, case: Case) -> bool:
    try:
        assert_right(answer, case)
    except AssertionError:
        return False
    return True
