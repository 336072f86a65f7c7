"""The CUDA kernels, run on the host by tests/cuda_host/emulator.h, against float64; NumPy stands in for cuFFT."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from affnet_kernels.activations import ACTIVATIONS
from tests.helpers import (
    FORWARD_BOUND,
    GRADIENT_BOUND,
    PARAMETERS,
    SHAPES,
    Case,
    Shape,
    branch_error,
    make_case,
    relative_error,
    stored_case,
    stored_case_names,
)

ROOT = Path(__file__).parents[1]
HOST = ROOT / "tests" / "cuda_host"
CLEAN = "races=0 uninitialised=0 out_of_bounds=0 misaligned=0 stuck=0"
FINDINGS = ("races", "uninitialised", "out_of_bounds", "misaligned", "stuck")
TYPICAL = SHAPES["odd width"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def arguments_type(number: Any) -> Any:
    """affnet::MapArguments<T>."""
    fields = [
        *((name, ctypes.c_void_p) for name in ("X", "G", *PARAMETERS, "partials")),
        *((name, ctypes.c_int64) for name in ("units", "first_unit", "runs")),
        *((name, ctypes.c_int) for name in ("K", "D", "Dh", "H", "W")),
        *((name, number) for name in ("scale", "threshold")),
        ("activation", ctypes.c_int),
        ("input_grad", ctypes.c_bool),
    ]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


TYPES = {
    torch.float32: ("float", np.float32, np.complex64, arguments_type(ctypes.c_float)),
    torch.float64: ("double", np.float64, np.complex128, arguments_type(ctypes.c_double)),
}


def build(
    source: Path,
    target: Path,
    level: str = "-O0",
    main: str = "emulated_kernels.cpp",
    defines: tuple[str, ...] = (),
) -> ctypes.CDLL:
    """The kernels under `source`, as a library of host code."""
    command = ["g++", level, "-std=c++20", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC", *defines]
    done = subprocess.run(
        [*command, f"-I{source}", f"-I{HOST}", str(HOST / main), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    reports = ("map_float", "map_double", "reduce_float", "reduce_double", "run_broken", "run_warp_sums", "run_product")
    for name in reports:
        if hasattr(library, name):
            getattr(library, name).restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(ROOT / "csrc", tmp_path_factory.mktemp("emulated") / "kernels.so", "-O2")


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if array is None else array.ctypes.data)


def half_of_symmetric_columns(spectrum: np.ndarray, width: int) -> np.ndarray:
    """What a 2-D complex-to-real transform may read: half of DC and Nyquist, the rest is assumed by symmetry."""
    assumed = spectrum.copy()
    height = spectrum.shape[-2]
    for w in {0, width // 2} if width % 2 == 0 else {0}:
        for h in range(height // 2 + 1, height):
            assumed[..., h, w] = spectrum[..., height - h, w].conj()
    return assumed


def inverse(spectrum: np.ndarray, width: int) -> np.ndarray:
    """An unnormalised complex-to-real transform over both axes."""
    height = spectrum.shape[-2]
    columns = np.fft.ifft(half_of_symmetric_columns(spectrum, width), axis=-2)
    return np.fft.irfft(columns, width, axis=-1) * (height * width)


class Options(NamedTuple):
    tile: int = 0  # 0: the one that would be launched; of the tensor-core kernels it is the quads
    units_at_once: int = 10**9
    runs: int = 3
    input_grad: bool = True
    parameter_grads: bool = True


DEFAULT = Options()


class Answer(NamedTuple):
    y: np.ndarray
    gradients: tuple[np.ndarray, ...]
    reports: list[str]


def emulate(library: ctypes.CDLL, case: Case, options: Options = DEFAULT, count_banks: bool = False) -> Answer:
    """Forward and backward of a call, as mixer.cu launches them."""
    dtype = torch.float64 if case.tensors[0].dtype == torch.float64 else torch.float32
    name, real, complex_, arguments_of = TYPES[dtype]
    x, w1, b1, w2, b2 = (np.ascontiguousarray(t.to(dtype).numpy()) for t in case.tensors)
    dy = np.ascontiguousarray(case.dy.to(dtype).numpy())
    B, _, H, W = x.shape
    _, K, D, Dh = w1.shape
    units = B * K
    size = 4 * D * Dh + 2 * (D + Dh)
    partials = np.zeros((K, options.runs, size), real)
    reports: list[str] = []

    def spectrum(planes: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(planes.astype(np.float64)).astype(complex_).reshape(units, D, H, W // 2 + 1)

    def launch(X: np.ndarray, G: np.ndarray | None) -> np.ndarray:
        for first in range(0, units, options.units_at_once):
            chunk = slice(first, min(first + options.units_at_once, units))
            arguments = arguments_of(
                *(pointer(a if a is None else a[chunk]) for a in (X, G)),
                *(pointer(p) for p in (w1, b1, w2, b2)),
                pointer(partials if options.parameter_grads else None),
                *(chunk.stop - first, first, options.runs, K, D, Dh, H, W),
                *(
                    (H * W) ** -0.5,
                    case.sparsity_threshold,
                    list(ACTIVATIONS).index(case.activation),
                    options.input_grad,
                ),
            )
            run = getattr(library, f"map_{name}")
            report = run(
                ctypes.byref(arguments), ctypes.c_bool(G is not None), options.tile, ctypes.c_bool(count_banks)
            )
            reports.append(report.decode())
        return X if G is None else G

    X = spectrum(x)
    y = inverse(launch(X.copy(), None), W).reshape(x.shape) + x
    G = spectrum(dy)
    before = G.copy()
    launch(X, G)
    if not options.input_grad:
        assert np.array_equal(G, before)
    dx = inverse(G, W).reshape(x.shape) + dy
    gradients = [np.full_like(p, np.nan) for p in (w1, b1, w2, b2)]
    reduce = getattr(library, f"reduce_{name}")
    reports.append(
        reduce(pointer(partials), ctypes.c_int64(options.runs), K, D, Dh, *(pointer(g) for g in gradients)).decode()
    )
    return Answer(y, (dx, *gradients), reports)


def errors(answer: Answer, case: Case) -> dict[str, float]:
    """Of the branch and of the five gradients."""
    found = {"y": branch_error(torch.from_numpy(answer.y), case)}
    for name, got, expected in zip(("x", *PARAMETERS), answer.gradients, case.gradients, strict=True):
        found[f"d{name}"] = relative_error(torch.from_numpy(np.asarray(got)), expected)
    return found


def assert_right(answer: Answer, case: Case) -> None:
    dtype = torch.float64 if case.tensors[0].dtype == torch.float64 else torch.float32
    for report in answer.reports:
        assert report.startswith(CLEAN), report
    for name, error in errors(answer, case).items():
        assert error <= (FORWARD_BOUND if name == "y" else GRADIENT_BOUND)[dtype], (name, error)


def is_right(answer: Answer, case: Case) -> bool:
    try:
        assert_right(answer, case)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("name", SHAPES)
def test_shape(kernels: ctypes.CDLL, name: str) -> None:
    case = make_case(SHAPES[name])
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("name", stored_case_names())
def test_stored_case(kernels: ctypes.CDLL, name: str) -> None:
    case = stored_case(name)
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_and_dtype(kernels: ctypes.CDLL, dtype: torch.dtype, activation: str) -> None:
    for name in ("odd width", "hidden twice the block"):
        case = make_case(SHAPES[name], dtype, activation)
        assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("tile", [8, 16, 32, 64])
@pytest.mark.parametrize("name", ["odd both", "two by two: DC and Nyquist only", "one channel a block", "a column"])
def test_every_tile(kernels: ctypes.CDLL, name: str, tile: int) -> None:
    case = make_case(SHAPES[name])
    assert_right(emulate(kernels, case, Options(tile=tile)), case)


@pytest.mark.parametrize("units", [1, 3, 5])
@pytest.mark.parametrize("runs", [1, 7])
def test_chunks_and_runs(kernels: ctypes.CDLL, units: int, runs: int) -> None:
    """A call in pieces that end within an image, its parameter gradients in any number of partial sums."""
    case = make_case(SHAPES["odd height"])
    assert_right(emulate(kernels, case, Options(units_at_once=units, runs=runs)), case)


def test_groups_of_gradients(kernels: ctypes.CDLL) -> None:
    case = make_case(TYPICAL)
    both = emulate(kernels, case)
    without_input = emulate(kernels, case, Options(input_grad=False))
    without_parameters = emulate(kernels, case, Options(parameter_grads=False))
    for got, expected in zip(without_input.gradients[1:], both.gradients[1:], strict=True):
        assert np.array_equal(got, expected)
    assert np.array_equal(without_parameters.gradients[0], both.gradients[0])
    assert not any(gradient.any() for gradient in without_parameters.gradients[1:])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_every_size_has_a_launch(kernels: ctypes.CDLL, backward: bool, wide: bool) -> None:
    """D and Dh from 1 to 128 fit the shared memory of every target, and the threads the kernels are compiled for."""
    facts = (ctypes.c_int * 4)()
    for D in range(1, 129):
        for Dh in range(1, 129):
            kernels.launch_facts(D, Dh, ctypes.c_bool(backward), ctypes.c_bool(wide), facts)
            tile, threads, shared_bytes, most_threads = facts
            assert threads <= most_threads, (D, Dh)
            assert threads * 4 >= max(D, Dh) * (tile // 2), (D, Dh)
            assert shared_bytes <= 99 * 1024, (D, Dh)


def test_bank_conflicts(kernels: ctypes.CDLL) -> None:
    """Few for what this kernel is; the count itself is exact."""
    answer = emulate(kernels, make_case(SHAPES["shipped, D=16"]), count_banks=True)
    for report in answer.reports[:2]:
        numbers = dict(word.split("=") for word in report.split(";")[0].split())
        assert int(numbers["wavefronts"]) <= 1.1 * int(numbers["ideal"]), report


def test_planes(kernels: ctypes.CDLL) -> None:
    """Cast in, residual and cast out; as real numbers and as complex ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator).to(torch.bfloat16)
    bits = x.view(torch.int16).numpy()
    for stride in (1, 2):
        wide = np.full(1000 * stride, np.nan, np.float32)
        kernels.load_brain(pointer(bits), pointer(wide), ctypes.c_int64(1000), stride)
        assert np.array_equal(wide[::stride], x.float().numpy())
        assert not wide[stride - 1 :: stride].any() or stride == 1
        wide /= 3
        y = np.zeros(1000, np.int16)
        kernels.store_brain(pointer(wide), pointer(bits), pointer(y), ctypes.c_int64(1000), stride)
        expected = (torch.from_numpy(wide[::stride].copy()) + x.float()).to(torch.bfloat16)
        assert torch.equal(torch.from_numpy(y).view(torch.bfloat16), expected)


MUTATIONS: dict[str, tuple[str, str, str]] = {  # what, text, replaced by
    "no barrier before weights are staged": (
        "    barrier();\n    stage(w, first, count);",
        "    stage(w, first, count);",
        "spectral_map.cuh",
    ),
    "no barrier after weights are staged": ("count);\n    barrier();", "count);", "spectral_map.cuh"),
    "no barrier between tiles": (
        "    barrier();  // the tile before",
        "    // the tile before",
        "spectral_map_vjp.cuh",
    ),
    "no barrier before the weight gradient": ("  barrier();\n  // A special", "  // A special", "spectral_map_vjp.cuh"),
    "sign of a product": ("a.re -= x[slot].im * v.im", "a.re += x[slot].im * v.im", "spectral_map.cuh"),
    "sign of a weight's gradient": ("sum[p][q].im -= a", "sum[p][q].im += a", "spectral_map_vjp.cuh"),
    "conjugate of the adjoint": ("m.sign = -sign", "m.sign = sign", "spectral_map.cuh"),
    "stride of a row": ("(row * kStride + lane", "(row * (kStride - 2) + lane", "spectral_map.cuh"),
    "symmetry of the special columns": ("if (special) value[1].im", "if (false) value[1].im", "spectral_map.cuh"),
    "weight of the special columns": ("place.special ? 0 : 1, a.W", "1, a.W", "spectral_map_vjp.cuh"),
    "a channel too many": ("if (channel >= a.Dh) break", "if (channel > a.Dh) break", "spectral_map.cuh"),
    "one thread short": ("return {tile, threads,", "return {tile, threads - 32,", "spectral_map.cuh"),
}


def mutated(folder: Path, old: str, new: str, file: str) -> Path:
    """A copy of csrc with one bug."""
    source = folder / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    text = (source / "cuda" / file).read_text()
    assert text.count(old) == 1
    (source / "cuda" / file).write_text(text.replace(old, new))
    return source


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutation_is_caught(tmp_path: Path, what: str) -> None:
    """Each bug, seeded into a copy of the kernels, is found by a report or by a wrong answer."""
    library = build(mutated(tmp_path, *MUTATIONS[what]), tmp_path / "kernels.so")
    case = make_case(SHAPES["odd both"])
    alone = emulate(library, case, Options(input_grad=False))
    alone = alone._replace(gradients=(case.gradients[0].numpy(), *alone.gradients[1:]))
    assert not (is_right(emulate(library, case), case) and is_right(alone, case))


def test_an_even_stride_costs_bank_conflicts(tmp_path: Path) -> None:
    """The answer stays right; the count of wavefronts shows it."""
    source = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    path = source / "cuda" / "spectral_map.cuh"
    text = path.read_text()
    assert text.count("kTile + 1;") == text.count("(tile + 1))") == 1
    path.write_text(text.replace("kTile + 1;", "kTile + 16;").replace("(tile + 1))", "(tile + 16))"))
    library = build(source, tmp_path / "kernels.so")
    case = make_case(Shape(1, 13, 4, 4, 1))
    answer = emulate(library, case, count_banks=True)
    assert_right(answer, case)
    numbers = dict(word.split("=") for word in answer.reports[1].split(";")[0].split())
    assert int(numbers["wavefronts"]) > 1.5 * int(numbers["ideal"])


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        ("fine", ""),
        ("race", "races"),
        ("warp race", "races"),
        ("read, then write", "races"),
        ("shuffle for a barrier", "races"),
        ("uninitialised", "uninitialised"),
        ("out of bounds", "out_of_bounds"),
        ("misaligned", "misaligned"),
        ("stuck", "stuck"),
        ("divergent warp", "stuck"),
    ],
)
def test_the_emulator_finds(kernels: ctypes.CDLL, kind: str, finding: str) -> None:
    report = kernels.run_broken(kind.encode()).decode()
    numbers = dict(word.split("=") for word in report.split(";")[0].split())
    assert {name for name in FINDINGS if int(numbers[name])} == ({finding} if finding else set()), report


def test_the_emulator_shuffles(kernels: ctypes.CDLL) -> None:
    sums = np.zeros(64, np.int32)
    assert kernels.run_warp_sums(pointer(sums)).decode().startswith(CLEAN)
    assert sums.tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32
