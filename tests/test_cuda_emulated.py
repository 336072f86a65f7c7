"""The plain FMA kernels on the host emulator (tests/cuda_host/emulator.h) against float64; NumPy replaces cuFFT."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Iterator
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
TILES = (8, 16, 32, 64)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class CallFacts(ctypes.Structure):
    """affnet::CallFacts of csrc/cuda/launch_plan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "H", "W", "K", "D", "Dh", "workspace_bytes")),
        ("real_bytes", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("converted", "backward", "parameter_grads", "tensor_cores")),
    ]


class LaunchPlan(ctypes.Structure):
    """affnet::LaunchPlan."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("quads", "tile", "threads", "shared_bytes")),
        *((name, ctypes.c_int64) for name in ("chunk", "ctas_per_block_image", "ctas_per_block")),
    ]


def arguments_type(number: Any) -> Any:
    """affnet::MapArguments<T> of csrc/cuda/spectral_map.cuh."""
    fields = [
        *((name, ctypes.c_void_p) for name in ("X", "G", *PARAMETERS, "partials")),
        *((name, ctypes.c_int64) for name in ("block_images", "first", "ctas_per_block")),
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
    """A library of the kernels under `source`, compiled for the host."""
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
    library.plan_launch.restype = None
    sizes = (ctypes.c_int * 4)()
    library.structure_bytes(sizes)
    structures = (CallFacts, LaunchPlan, TYPES[torch.float32][3], TYPES[torch.float64][3])
    assert [*sizes] == [ctypes.sizeof(structure) for structure in structures]
    return library


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(ROOT / "csrc", tmp_path_factory.mktemp("emulated") / "kernels.so", "-O2")


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if array is None else array.ctypes.data)


def half_of_symmetric_columns(spectrum: np.ndarray, width: int) -> np.ndarray:
    """What a 2-D complex-to-real transform may use: half of the columns DC and Nyquist; it assumes the rest."""
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
    """What replaces the launch plan's choices, where it is not 0, and which gradients are wanted."""

    tile: int = 0  # frequencies of a tile, plain FMA
    quads: int = 0  # of channels, tensor cores
    chunk: int = 0  # block-images
    ctas_per_block: int = 0
    input_grad: bool = True
    parameter_grads: bool = True


DEFAULT = Options()
WORKSPACE = 32 << 20


class Answer(NamedTuple):
    y: np.ndarray
    gradients: tuple[np.ndarray, ...]
    reports: list[str]
    plans: list[LaunchPlan]  # forward, backward


def launch_plan(library: ctypes.CDLL, facts: CallFacts, options: Options = DEFAULT) -> LaunchPlan:
    plan = LaunchPlan()
    library.plan_launch(ctypes.byref(facts), options.tile, options.quads, ctypes.byref(plan))
    plan.chunk = options.chunk or plan.chunk
    if options.ctas_per_block and not plan.ctas_per_block_image:
        plan.ctas_per_block = options.ctas_per_block
    return plan


def emulate(library: ctypes.CDLL, case: Case, options: Options = DEFAULT, count_banks: bool = False) -> Answer:
    """Forward and backward of a call, launched by the same plan as in mixer.cu."""
    dtype = torch.float64 if case.tensors[0].dtype == torch.float64 else torch.float32
    name, real, complex_, arguments_of = TYPES[dtype]
    x, w1, b1, w2, b2 = (np.ascontiguousarray(t.to(dtype).numpy()) for t in case.tensors)
    dy = np.ascontiguousarray(case.dy.to(dtype).numpy())
    B, _, H, W = x.shape
    _, K, D, Dh = w1.shape
    tensor_cores = not hasattr(library, "map_double")
    activation = library.activation_number(case.activation.encode())
    assert activation >= 0
    reports: list[str] = []

    def plan_of(backward: bool) -> LaunchPlan:
        flags = (backward, options.parameter_grads, tensor_cores)
        return launch_plan(library, CallFacts(B, H, W, K, D, Dh, WORKSPACE, x.itemsize, False, *flags), options)

    def spectrum(planes: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(planes.astype(np.float64)).astype(complex_).reshape(B * K, D, H, W // 2 + 1)

    def launch(plan: LaunchPlan, X: np.ndarray, G: np.ndarray | None, partials: np.ndarray | None) -> np.ndarray:
        for first in range(0, B * K, plan.chunk):
            chunk = slice(first, min(first + plan.chunk, B * K))
            arguments = arguments_of(
                *(pointer(a if a is None else a[chunk]) for a in (X, G)),
                *(pointer(p) for p in (w1, b1, w2, b2)),
                pointer(partials),
                *(chunk.stop - first, first, plan.ctas_per_block, K, D, Dh, H, W),
                *((H * W) ** -0.5, case.sparsity_threshold, activation, options.input_grad),
            )
            flags = (ctypes.c_bool(G is not None), ctypes.c_bool(count_banks))
            report = getattr(library, f"map_{name}")(ctypes.byref(arguments), ctypes.byref(plan), *flags)
            reports.append(report.decode())
        return X if G is None else G

    forward, backward = plan_of(False), plan_of(True)
    X = spectrum(x)
    y = inverse(launch(forward, X.copy(), None, None), W).reshape(x.shape) + x
    G = spectrum(dy)
    before = G.copy()
    partials = np.zeros((K, backward.ctas_per_block, 4 * D * Dh + 2 * (D + Dh)), real)
    launch(backward, X, G, partials if options.parameter_grads else None)
    if not options.input_grad:
        assert np.array_equal(G, before)
    dx = inverse(G, W).reshape(x.shape) + dy
    gradients = [np.full_like(p, np.nan) for p in (w1, b1, w2, b2)]
    reduce = getattr(library, f"reduce_{name}")
    report = reduce(
        pointer(partials), ctypes.c_int64(backward.ctas_per_block), K, D, Dh, *(pointer(g) for g in gradients)
    )
    reports.append(report.decode())
    return Answer(y, (dx, *gradients), reports, [forward, backward])


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


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", ["odd both", "two by two: DC and Nyquist only", "one channel a block", "a column"])
def test_every_tile(kernels: ctypes.CDLL, name: str, tile: int) -> None:
    case = make_case(SHAPES[name])
    assert_right(emulate(kernels, case, Options(tile=tile, ctas_per_block=3)), case)


@pytest.mark.parametrize("chunk", [1, 3, 5])
@pytest.mark.parametrize("ctas", [1, 7])
def test_chunks_and_partial_sums(kernels: ctypes.CDLL, chunk: int, ctas: int) -> None:
    """Chunks that end within an image, and any number of partial sums of the parameter gradients."""
    case = make_case(SHAPES["odd height"])
    assert_right(emulate(kernels, case, Options(chunk=chunk, ctas_per_block=ctas)), case)


def test_groups_of_gradients(kernels: ctypes.CDLL) -> None:
    case = make_case(TYPICAL)
    both = emulate(kernels, case)
    without_input = emulate(kernels, case, Options(input_grad=False))
    without_parameters = emulate(kernels, case, Options(parameter_grads=False))
    for got, expected in zip(without_input.gradients[1:], both.gradients[1:], strict=True):
        assert np.array_equal(got, expected)
    assert np.array_equal(without_parameters.gradients[0], both.gradients[0])
    assert not any(gradient.any() for gradient in without_parameters.gradients[1:])


@pytest.mark.parametrize("float64", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_every_size_has_a_launch(kernels: ctypes.CDLL, backward: bool, float64: bool) -> None:
    """D and Dh up to the limit fit the shared memory of every target and the threads the kernels are compiled for."""
    limits = (ctypes.c_int64 * 3)()
    kernels.limits(limits)
    channels, _, shared_bytes = limits
    most_threads = kernels.max_threads(ctypes.c_bool(backward), ctypes.c_bool(float64))
    sizes = [*range(1, 42), *range(45, channels, 9), channels - 1, channels]
    for D, Dh in itertools.product(sizes, sizes):
        facts = CallFacts(2, 16, 16, 8, D, Dh, WORKSPACE, 8 if float64 else 4, False, backward, True, False)
        plan = launch_plan(kernels, facts)
        assert kernels.has_kernel(ctypes.byref(plan), ctypes.c_bool(backward), ctypes.c_bool(float64)), (D, Dh)
        assert plan.threads <= most_threads, (D, Dh)
        assert plan.threads * 4 >= max(D, Dh) * (plan.tile // 2), (D, Dh)
        assert plan.shared_bytes <= shared_bytes, (D, Dh)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("D", [129, 256])
def test_wide_blocks(kernels: ctypes.CDLL, D: int, dtype: torch.dtype) -> None:
    """Blocks wider than 128 channels take the smallest tiles, which stage fewer rows of a weight matrix at a time."""
    case = make_case(Shape(1, D, 3, 4, 1), dtype, "silu")
    answer = emulate(kernels, case)
    assert [plan.tile for plan in answer.plans] == {
        (torch.float32, 129): [8, 8],
        (torch.float32, 256): [8, 4],
        (torch.float64, 129): [8, 8],
        (torch.float64, 256): [4, 4],
    }[dtype, D]
    assert_right(answer, case)


def plans_over(kernels: ctypes.CDLL, backward: bool, **changes: Any) -> Iterator[tuple[CallFacts, LaunchPlan]]:
    for B, size, K, D in itertools.product((1, 3, 64), (1, 7, 64, 2**14), (1, 8, 1000), (4, 40, 256)):
        facts = CallFacts(B, size, size, K, D, D, WORKSPACE, 4, False, backward, True, False)
        for name, value in changes.items():
            setattr(facts, name, value)
        yield facts, launch_plan(kernels, facts)


@pytest.mark.parametrize("backward", [False, True])
def test_a_chunk_fits_the_workspace(kernels: ctypes.CDLL, backward: bool) -> None:
    """A chunk takes as many block-images as the workspace holds, at least one, and the chunks are nearly equal."""
    for converted in (False, True):
        for f, plan in plans_over(kernels, backward, converted=converted):
            spectra = (2 if backward else 1) * f.D * f.H * (f.W // 2 + 1) * 8
            each = spectra + (f.D * f.H * f.W * 4 if converted else 0)
            assert 1 <= plan.chunk <= f.B * f.K
            assert plan.chunk == 1 or plan.chunk * each <= WORKSPACE
            assert plan.chunk == 1 or plan.chunk * f.H * (f.W // 2 + 1) <= 2**30
            chunks = -(-f.B * f.K // plan.chunk)
            assert chunks * plan.chunk - f.B * f.K < chunks
            if plan.chunk < f.B * f.K:
                fewer = -(-f.B * f.K // (chunks - 1))
                assert fewer * each > WORKSPACE or fewer * f.H * (f.W // 2 + 1) > 2**30


@pytest.mark.parametrize("tensor_cores", [False, True])
def test_partial_sums_are_bounded(kernels: ctypes.CDLL, tensor_cores: bool) -> None:
    """Partial sums take at most 32 MiB, or one per block, and are no more than there are tiles."""
    for f, plan in plans_over(kernels, True, tensor_cores=tensor_cores):
        size = 4 * (4 * f.D * f.Dh + 2 * (f.D + f.Dh))
        assert plan.ctas_per_block == 1 or plan.ctas_per_block * f.K * size <= 32 << 20
        frequencies = -(-plan.chunk // f.K) * f.H * (f.W // 2 + 1)
        assert plan.ctas_per_block == 1 or plan.ctas_per_block <= frequencies
        assert f.K * plan.ctas_per_block < 2**31


def test_the_grid_of_a_forward_map(kernels: ctypes.CDLL) -> None:
    """One CTA for every tile of every block-image, and few enough for a grid of 32 bits."""
    for f, plan in plans_over(kernels, False):
        assert plan.ctas_per_block == 0
        special = 1 + (f.W > 1 and f.W % 2 == 0)
        regular = f.H * (f.W // 2 + 1 - special)
        assert plan.ctas_per_block_image == -(-regular // plan.tile) + -(-f.H * special // (plan.tile // 2))
        assert plan.ctas_per_block_image * plan.chunk < 2**31


def test_bank_conflicts(kernels: ctypes.CDLL) -> None:
    """At most a tenth more wavefronts than without conflicts."""
    answer = emulate(kernels, make_case(SHAPES["shipped, D=16"]), count_banks=True)
    for report in answer.reports[:2]:
        numbers = dict(word.split("=") for word in report.split(";")[0].split())
        assert int(numbers["wavefronts"]) <= 1.1 * int(numbers["ideal"]), report


def test_planes(kernels: ctypes.CDLL) -> None:
    """Conversion on the way in, residual and conversion on the way out; stored as real and as complex numbers."""
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
        "    barrier();  // every thread",
        "    // every thread",
        "spectral_map_vjp.cuh",
    ),
    "no barrier before the weight gradient": (
        "  barrier();\n  // The second half",
        "  // The second half",
        "spectral_map_vjp.cuh",
    ),
    "sign of a product": ("a.re -= x[f].im * v.im", "a.re += x[f].im * v.im", "spectral_map.cuh"),
    "sign of a weight's gradient": ("sum[p][q].im -= a", "sum[p][q].im += a", "spectral_map_vjp.cuh"),
    "conjugate of the adjoint": ("m.sign = -sign", "m.sign = sign", "spectral_map.cuh"),
    "stride of a row": ("(row * kStride + lane", "(row * (kStride - 2) + lane", "spectral_map.cuh"),
    "symmetry of the special columns": ("if (special) value[1].im", "if (false) value[1].im", "spectral_map.cuh"),
    "weight of the special columns": ("place.special ? 0 : 1, a.W", "1, a.W", "spectral_map_vjp.cuh"),
    "a channel too many": ("if (channel >= a.Dh) break", "if (channel > a.Dh) break", "spectral_map.cuh"),
    "one warp short": (
        "* kWarpThreads;\n  plan.shared_bytes = fma",
        "* 0 + 32;\n  plan.shared_bytes = fma",
        "launch_plan.h",
    ),
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
    """Each bug, put into a copy of the kernels, shows in the emulator's report or in a wrong answer."""
    library = build(mutated(tmp_path, *MUTATIONS[what]), tmp_path / "kernels.so")
    case = make_case(SHAPES["odd both"])
    several = Options(ctas_per_block=2)  # a CTA has several tiles, as in larger calls
    alone = emulate(library, case, several._replace(input_grad=False))
    alone = alone._replace(gradients=(case.gradients[0].numpy(), *alone.gradients[1:]))
    assert not (is_right(emulate(library, case, several), case) and is_right(alone, case))


def test_an_activation_without_a_branch_does_not_compile(tmp_path: Path) -> None:
    """No kernel takes an activation it does not know for another, such as the identity."""
    source = mutated(tmp_path, 'X("relu", kRelu)', 'X("relu", kRelu) X("square", kSquare)', "../activations.h")
    with pytest.raises(AssertionError, match="an activation without a branch here"):
        build(source, tmp_path / "kernels.so")


def test_an_even_stride_costs_bank_conflicts(tmp_path: Path) -> None:
    """The answer stays right, but the number of wavefronts grows."""
    source = mutated(tmp_path, "kTile + 1;", "kTile + 16;", "spectral_map.cuh")
    plan = source / "cuda" / "launch_plan.h"
    assert plan.read_text().count("rows * (tile + 1)") == 1
    plan.write_text(plan.read_text().replace("rows * (tile + 1)", "rows * (tile + 16)"))
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
