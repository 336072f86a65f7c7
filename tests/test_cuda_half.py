"""The device layer for 16-bit numbers on the host emulator: every instruction, and the bugs that it must report."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch

from tests.test_cuda_emulated import CLEAN, FINDINGS, HOST, ROOT, pointer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("half") / "half.so"
    command = ["g++", "-O1", "-std=c++20", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{HOST}"]
    subprocess.run([*command, *includes, str(HOST / "emulated_half.cpp"), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    for name in ("run_move", "run_half_product", "run_copy", "run_two_bytes"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def findings(report: bytes) -> set[str]:
    numbers = dict(word.split("=") for word in report.decode().split(";")[0].split())
    return {name for name in FINDINGS if int(numbers[name])}


@pytest.mark.parametrize("transposed_load", [False, True])
@pytest.mark.parametrize("transposed_store", [False, True])
def test_matrices(layer: ctypes.CDLL, transposed_load: bool, transposed_store: bool) -> None:
    """Each lane has the pair of columns 2 t and 2 t + 1 of row g, or of column g; no access has bank conflicts."""
    matrices = np.random.default_rng(0).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    back, registers = np.zeros_like(matrices), np.zeros((32, 4), np.uint32)
    flags = (ctypes.c_bool(transposed_load), ctypes.c_bool(transposed_store))
    report = layer.run_move(pointer(matrices), pointer(back), pointer(registers), *flags).decode()
    assert report.startswith(CLEAN), report
    held = matrices.transpose(0, 2, 1) if transposed_load else matrices
    pairs = np.ascontiguousarray(held).view(np.uint32)  # [4, 8, 4]
    assert np.array_equal(registers, pairs.reshape(4, 32).T)
    assert np.array_equal(back, held.transpose(0, 2, 1) if transposed_store else held)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 2])
def test_product(layer: ctypes.CDLL, dtype: torch.dtype, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(16, 8 * steps, generator=generator).to(dtype)
    b = torch.randn(8 * steps, 8, generator=generator).to(dtype)
    c = torch.randn(16, 8, generator=generator).numpy()
    expected = c + (a.double() @ b.double()).numpy()
    bits = [np.ascontiguousarray(m.view(torch.int16).numpy()) for m in (a, b)]
    brain = ctypes.c_bool(dtype == torch.bfloat16)
    report = layer.run_half_product(*(pointer(m) for m in bits), pointer(c), brain, steps).decode()
    assert report.startswith(CLEAN), report
    assert np.abs(c - expected).max() < 1e-6 * np.abs(expected).max()


def pairs_of(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype(np.float16)).view(np.uint32)


def run_pairs(layer: ctypes.CDLL, function: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.zeros(32, np.uint32)
    layer.run_pairs(function, pointer(a), pointer(b), pointer(result))
    return result


def test_pairs(layer: ctypes.CDLL) -> None:
    """Arithmetic of float16 rounded once, subnormal numbers and infinities among it."""
    generator = np.random.default_rng(0)
    scale = 10.0 ** generator.uniform(-7, 3, (2, 64))
    x, y = (generator.standard_normal((2, 64)) * scale).astype(np.float16)
    x[:3], y[:3] = (np.inf, 60000, -np.inf), (1, 60000, np.inf)
    a, b = pairs_of(x), pairs_of(y)
    wide = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = [
            wide[0] + wide[1],
            wide[0] - wide[1],
            wide[0] * wide[1],
            wide[0] * wide[1] + wide[0],
            np.maximum(np.abs(x), np.abs(y)),
        ]
        for function, values in enumerate(expected):
            got = run_pairs(layer, function, a, b).view(np.float16)
            assert np.array_equal(got, values.astype(np.float16), equal_nan=True), function


def test_conversions(layer: ctypes.CDLL) -> None:
    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal((2, 32)) * 10.0 ** generator.uniform(-9, 6, (2, 32))).astype(np.float32)
    x[:3] = np.inf, 65520, np.nan
    a, b = x.view(np.uint32), y.view(np.uint32)
    pairs = np.stack([x, y], 1)
    with np.errstate(over="ignore"):
        halves = pairs.astype(np.float16)
    relu = np.where(halves < 0, np.float16(0), halves)
    assert np.array_equal(run_pairs(layer, 5, a, b).view(np.float16).reshape(32, 2), halves, equal_nan=True)
    assert np.array_equal(run_pairs(layer, 7, a, b).view(np.float16).reshape(32, 2), relu, equal_nan=True)
    brain = torch.from_numpy(pairs).to(torch.bfloat16)
    got = torch.from_numpy(run_pairs(layer, 6, a, b).view(np.int16).copy()).view(torch.bfloat16).reshape(32, 2)
    assert torch.equal(got.nan_to_num(nan=1.5), brain.nan_to_num(nan=1.5))
    first = run_pairs(layer, 11, pairs_of(halves), b).view(np.float32)
    assert np.array_equal(first, halves[:, 0].astype(np.float32), equal_nan=True)
    second = run_pairs(layer, 12, brain.view(torch.int16).numpy().view(np.uint32).reshape(32), b).view(np.float32)
    assert np.array_equal(second, brain[:, 1].float().numpy())


def test_exchange(layer: ctypes.CDLL) -> None:
    a, b = np.random.default_rng(0).integers(0, 2**31, (2, 32)).astype(np.uint32)
    matrix = a.view(np.uint16).reshape(8, 8)
    assert np.array_equal(run_pairs(layer, 8, a, b).view(np.uint16).reshape(8, 8), matrix.T)
    assert np.array_equal(run_pairs(layer, 9, a, b), np.full(32, a.max()))
    assert np.array_equal(run_pairs(layer, 10, a, b), a[b % 32])


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("fine", set()),
        ("wait for the first", {"races"}),  # and read of the second
        ("no wait", {"races"}),
        ("no commit", set()),  # a later commit ends the group
        ("no barrier", {"races"}),
        ("out of bounds", {"out_of_bounds"}),
        ("endless", {"stuck"}),
    ],
)
def test_copies(layer: ctypes.CDLL, kind: str, found: set[str]) -> None:
    """A copy arrives when its thread waits for it; other threads see it after a barrier."""
    source = np.arange(1, 65, dtype=np.uint32)
    target = np.zeros_like(source)
    reported = findings(layer.run_copy(kind.encode(), pointer(source), pointer(target)))
    assert reported - {"uninitialised"} == found
    if not found:
        assert np.array_equal(source, target)


def test_two_bytes_are_apart(layer: ctypes.CDLL) -> None:
    assert findings(layer.run_two_bytes(ctypes.c_bool(True))) == set()
    assert findings(layer.run_two_bytes(ctypes.c_bool(False))) == {"races"}
