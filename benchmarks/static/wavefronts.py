"""Transactions of shared memory in the one-launch kernels over those without bank conflicts, from the emulator."""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.static.one_launch import Count, Shape


def wavefronts(counts: Iterable[Count]) -> dict[Shape, float]:
    """One image of one block of each shape, run on the host (tests/cuda_host/emulator.h)."""
    kernels = {count.shape: count.launch["kernel"] for count in counts}
    found: dict[Shape, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in (_single, _half):
            found |= run({s: k for s, k in kernels.items() if k.startswith(run.__name__[1:])}, Path(folder))
    return found


def _single(kernels: dict[Shape, str], folder: Path) -> dict[Shape, float]:
    from tests import test_cuda_single as single
    from tests.helpers import Shape as Call

    if not kernels:
        return {}
    instances = ", ".join(sorted({"{" + re.findall("<(.*)>", name)[0] + "}" for name in kernels.values()}))
    library = single.build(single.HOST.parents[1] / "csrc", folder / "single.so", "-O1", instances)
    found = {}
    for shape in kernels:
        call, dtype = Call(1, shape.channels, shape.size, shape.size, 1), getattr(torch, shape.dtype)
        case = single.make_case(call, "silu", dtype=dtype)
        found[shape] = _ratio(single.emulate(library, case, count_banks=True).report)
    return found


def _half(kernels: dict[Shape, str], folder: Path) -> dict[Shape, float]:
    from tests import test_cuda_single as single
    from tests.helpers import Shape as Call
    from tests.helpers import make_inputs

    if not kernels:
        return {}
    quads = ", ".join(str(q) for q in sorted({int(re.findall(r"\d+", name)[1]) for name in kernels.values()}))
    library = _half_library(folder / "half.so", quads)
    found = {}
    for shape in kernels:
        N, D = shape.size, shape.channels
        x, *parameters = make_inputs(Call(1, D, N, N, 1), torch.bfloat16)
        y = torch.empty_like(x)
        facts = (ctypes.c_int64 * 8)(1, N, N, 1, D, D, 16, single.SHARED_BYTES)
        tensors = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, *parameters))
        options = ctypes.c_float(0.01), library.half_activation(b"silu"), ctypes.c_int64(1)
        report = library.half_forward(facts, *tensors, *options, True)
        found[shape] = _ratio(report.decode())
    return found


def _half_library(target: Path, quads: str) -> ctypes.CDLL:
    import subprocess

    from tests.test_cuda_emulated import HOST, ROOT

    command = ["g++", "-O1", "-std=c++20", "-w", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}", f"-I{HOST}"]
    lists = [f"-DAFFNET_HALF_QUADS={quads}", f"-DAFFNET_HALF_QUADS_3={quads.split(',')[0]}"]
    subprocess.run([*command, *lists, str(HOST / "emulated_fused_half.cpp"), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.half_forward.restype = ctypes.c_char_p
    return library


def _ratio(report: str) -> float:
    counted, ideal = (int(re.findall(rf"{name}=(\d+)", report)[0]) for name in ("wavefronts", "ideal"))
    return counted / ideal
