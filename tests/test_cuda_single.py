"""The one-launch kernel that computes in float32 on the host emulator (tests/cuda_host/emulator.h) against float64."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import reference
from tests.helpers import FORWARD_BOUND, THRESHOLD, Case, Shape, assert_forward, make_inputs, relative_error
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
        ("element", ctypes.c_int),
    ]


def build(source: Path, target: Path, level: str = "-O1", instances: str = "") -> ctypes.CDLL:
    """A library of the kernels under `source` and their instances {H, W, quads}."""
    command = ["g++", level, "-std=c++20", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    done = subprocess.run(
        [
            *command,
            *([f"-DAFFNET_SINGLE_INSTANCES={instances}"] if instances else []),
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
    y: Tensor
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
    x, y = case.tensors[0].contiguous(), torch.full_like(case.tensors[0], np.nan)
    w1, b1, w2, b2 = (np.ascontiguousarray(tensor.numpy()) for tensor in case.tensors[1:])
    B, C, H, W = x.shape
    K, D = w1.shape[1:3]
    plan = plan_of(library, Shape(B, C, H, W, K))
    assert plan.instance >= 0
    if images:
        weights = library.layer_bytes(plan.instance)
        plan.shared_bytes = weights + (plan.shared_bytes - weights) // plan.images * images
        plan.images = images
    plan.ctas_per_block = ctas_per_block or plan.ctas_per_block
    arguments = Arguments(
        *(x.data_ptr(), y.data_ptr()),
        *(pointer(array) for array in (w1, b1, w2, b2)),
        *(B, plan.ctas_per_block, K, D, H, W, plan.images, plan.strides, case.sparsity_threshold),
        ACTIVATIONS_IN_CPP.index(case.activation),
        ELEMENTS.index(x.dtype),
    )
    report = library.run_single(ctypes.byref(arguments), ctypes.byref(plan), ctypes.c_bool(count_banks))
    return Answer(y, report.decode(), plan)


ACTIVATIONS_IN_CPP = ("relu", "silu", "gelu", "tanh", "identity")
ELEMENTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # affnet::Element


def make_case(
    shape: Shape, activation: str = "relu", factor: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Case:
    """A call and its float64 answer; x of scale `factor`."""
    x, *parameters = make_inputs(shape, seed=seed)
    x = (x * factor).to(dtype)
    wide = [tensor.double() for tensor in (x, *parameters)]
    y = reference.mixer(wide[0], tuple(wide[1:]), THRESHOLD, activation)
    return Case((x, *parameters), x, y, (), THRESHOLD, activation)


def assert_right(answer: Answer, case: Case) -> None:
    assert answer.report.startswith(CLEAN), answer.report
    assert_forward(answer.y, case)


def is_right(answer: Answer, case: Case) -> bool:
    try:
        assert_right(answer, case)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(ROOT / "csrc", tmp_path_factory.mktemp("emulated") / "single.so")


SHIPPED = {  # H = W: block sizes of AFFNet-ET, AFFNet-T, AFFNet at 256, 224 and 320 pixels
    **dict.fromkeys((32, 28, 40), (8, 12, 16)),
    **dict.fromkeys((16, 14, 20), (13, 20, 32)),
    **dict.fromkeys((8, 7, 10), (18, 24, 40)),
}
SHIPPED_SHAPES = [Shape(3 if N <= 20 else 2, D, N, N, 1) for N, sizes in SHIPPED.items() for D in sizes]
OTHER_SHAPES = [
    Shape(2, 2 * 9, 14, 10, 2),
    Shape(3, 2 * 5, 7, 40, 2),
    Shape(2, 11, 40, 7, 1),
    Shape(1, 36, 28, 8, 1),
    Shape(2, 17, 8, 20, 1),
    Shape(1, 14, 16, 32, 1),
    Shape(1, 24, 32, 16, 1),
    Shape(2, 28, 10, 8, 1),
]


def name_of(shape: Shape) -> str:
    return f"B={shape.batch} D={shape.block_size} {shape.height}x{shape.width}"


@pytest.mark.parametrize("shape", SHIPPED_SHAPES + OTHER_SHAPES, ids=name_of)
def test_shape(kernels: ctypes.CDLL, shape: Shape) -> None:
    """Shipped sizes run on instances of their own, all images of a block through one CTA."""
    case = make_case(shape)
    answer = emulate(kernels, case)
    assert_right(answer, case)
    assert (answer.plan.instance < 3 * len(SHIPPED)) == (shape in SHIPPED_SHAPES)


@pytest.mark.parametrize("D", range(5, 41))
def test_every_block_size(kernels: ctypes.CDLL, D: int) -> None:
    case = make_case(Shape(2, D, 7, 8, 1), seed=D)
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [Shape(2, 18, 8, 8, 1), Shape(1, 26, 16, 16, 2)], ids=name_of)
def test_activation(kernels: ctypes.CDLL, shape: Shape, activation: str) -> None:
    case = make_case(shape, activation)
    assert_right(emulate(kernels, case), case)


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "shape",
    [Shape(2, 18, 8, 8, 1), Shape(1, 16, 32, 32, 1), Shape(3, 2 * 13, 7, 10, 2), Shape(1, 11, 40, 7, 1)],
    ids=name_of,
)
def test_a_16_bit_type_is_rounded_once(kernels: ctypes.CDLL, shape: Shape, dtype: torch.dtype) -> None:
    """Its error is that of rounding y, to a hundredth; odd planes too, where every second column is misaligned."""
    for activation in ("relu", "silu"):
        case = make_case(shape, activation, dtype=dtype)
        answer = emulate(kernels, case)
        assert_right(answer, case)
        rounding = relative_error(case.y.to(dtype), case.y)
        assert relative_error(answer.y, case.y) <= 1.01 * rounding


@pytest.mark.parametrize("dtype", HALVES)
def test_what_a_16_bit_type_cannot_hold(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Spectra beyond float16's range are right; y is infinite where rounding it is; a NaN stays in its image."""
    case = make_case(Shape(2, 13, 8, 8, 1), factor=1.5e4, dtype=dtype)
    answer = emulate(kernels, case)
    assert answer.report.startswith(CLEAN), answer.report
    expected = case.y.to(dtype)
    assert torch.equal(answer.y.isinf(), expected.isinf())
    assert expected.isinf().any() == (dtype == torch.float16)
    finite = expected.isfinite()
    assert relative_error(answer.y[finite], case.y[finite]) <= 1.01 * relative_error(expected[finite], case.y[finite])
    case.tensors[0][0, 3, 2, 5] = np.nan
    y = emulate(kernels, case).y
    assert y[0].isnan().all()
    assert torch.equal(y[1], answer.y[1])


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_range(kernels: ctypes.CDLL, factor: float, activation: str) -> None:
    """Of an input ten thousand times smaller or larger.

    The error is that of y: the residual is part of the spectrum, so a branch that is much smaller than x has x's error.
    """
    for shape in (Shape(2, 18, 8, 8, 1), Shape(1, 16, 28, 28, 1)):
        case = make_case(shape, activation, factor)
        answer = emulate(kernels, case)
        assert answer.report.startswith(CLEAN), answer.report
        assert relative_error(answer.y, case.y) <= FORWARD_BOUND[torch.float32]


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_the_grid_does_not_change_a_bit(kernels: ctypes.CDLL, images: int) -> None:
    """Nor do the images that a CTA takes at a time; and their number need not divide the batch."""
    case = make_case(Shape(5, 2 * 13, 8, 14, 2))
    expected = emulate(kernels, case).y
    for ctas_per_block in (1, 2, 7):
        answer = emulate(kernels, case, ctas_per_block, images)
        assert_right(answer, case)
        assert torch.equal(answer.y, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_image_and_block(kernels: ctypes.CDLL, value: float) -> None:
    """Through ReLU too, and with planes that the block has not."""
    case = make_case(Shape(4, 2 * 13, 7, 8, 2))
    x = case.tensors[0].clone()
    x[0, 3, 2, 5] = value
    y = emulate(kernels, case._replace(tensors=(x, *case.tensors[1:]))).y
    assert y[0, :13].isnan().all()
    assert torch.equal(y[0, 13:], emulate(kernels, case).y[0, 13:])
    assert torch.equal(y[1:], emulate(kernels, case).y[1:])


@pytest.mark.parametrize("shape", SHIPPED_SHAPES, ids=name_of)
def test_bank_conflicts(kernels: ctypes.CDLL, shape: Shape) -> None:
    """At most a tenth more wavefronts than without conflicts; where eight to a plane do not fit, a quarter more."""
    report = emulate(kernels, make_case(shape), count_banks=True).report
    numbers = dict(word.split("=") for word in report.split(";")[0].split())
    bound = 1.1 if shape.width in (16, 20, 28, 32) else 1.25
    assert int(numbers["wavefronts"]) <= bound * int(numbers["ideal"]), report


def test_plans(kernels: ctypes.CDLL) -> None:
    """A plan fits the device, has work for each of its CTAs, and a size without an instance has no plan."""
    lengths = (7, 8, 10, 14, 16, 20, 28, 32, 40)
    for H, W, D, B in itertools.product(lengths, lengths, (5, 8, 13, 16, 20, 24, 31, 40), (1, 3, 64)):
        shape = Shape(B, 8 * D, H, W, 8)
        for shared_bytes in (99 * 1024, SHARED_BYTES):
            plan = plan_of(kernels, shape, shared_bytes)
            if plan.instance < 0:
                assert plan.shared_bytes > shared_bytes
                continue
            assert plan.threads == 128
            assert plan.shared_bytes <= shared_bytes
            assert plan.strides.row >= W
            assert plan.strides.plane >= H * plan.strides.row
            assert 1 <= plan.images <= min(4, B)
            assert 1 <= plan.ctas_per_block <= -(-B // plan.images)
    for shape in (Shape(1, 41, 8, 8, 1), Shape(1, 4, 8, 8, 1), Shape(1, 8, 9, 8, 1), Shape(1, 8, 8, 64, 1)):
        assert plan_of(kernels, shape).instance == -1
    assert plan_of(kernels, Shape(1, 8, 8, 8, 1, hidden_factor=2)).instance == -1
    for shape in SHIPPED_SHAPES:
        assert plan_of(kernels, shape).instance >= 0


MUTATIONS: dict[str, tuple[str, str, str]] = {  # what, text, replaced by
    "no barrier after columns": (
        "layout.H(), layout.W());\n    barrier();\n    run_pass<kW>(RowPass",
        "layout.H(), layout.W());\n    run_pass<kW>(RowPass",
        "single_forward.cuh",
    ),
    "no barrier before the map": ("    barrier();\n    map_planes", "    map_planes", "single_forward.cuh"),
    "no barrier after the map": (
        "scale);\n    barrier();\n    run_pass<kW>(InverseRow",
        "scale);\n    run_pass<kW>(InverseRow",
        "single_forward.cuh",
    ),
    "no barrier before the columns back": ("    barrier();\n    // A thread", "    // A thread", "single_forward.cuh"),
    "no barrier for shared planes": ("kQuads % 2 == 1) warp_barrier()", "false) warp_barrier()", "single_map.cuh"),
    "missing planes are not cleared": ("  clear_missing_planes(layout);\n", "", "single_forward.cuh"),
    "sign of a twiddle factor": (
        "{p.re + q.im, p.im - q.re}, b = {p.re - q.im, p.im + q.re}",
        "{p.re - q.im, p.im + q.re}, b = {p.re + q.im, p.im - q.re}",
        "fft_registers.cuh",
    ),
    "order of coprime factors": ("v[(B * a + A * b) % (A * B)]", "v[(A * a + B * b) % (A * B)]", "fft_registers.cuh"),
    "sine of an odd transform": ("Turn(j * k, N).sine / kFirst", "Turn(j, N).sine / kFirst", "fft_registers.cuh"),
    "negative row": ("k == 0 ? 0 : H - k", "k == 0 ? 0 : H - 1 - k", "single_rows.cuh"),
    "the row that is its own negative": (
        "own ? (H % 2 == 0 ? H / 2 : 0) : H - j",
        "own ? 0 : H - j",
        "single_rows.cuh",
    ),
    "both special rows are stored": ("(r == 0 || !kSpecial || own)", "true", "single_rows.cuh"),
    "frequencies beyond the last": ("whole_units || image < tiling.images", "true", "single_rows.cuh"),
    "the second channel of a plane": ("z.im + n.im, n.re - z.re", "z.im + n.im, z.re - n.re", "single_rows.cuh"),
    "lanes of the last quad": ("2 * (t % 2) + t / 2", "t", "single_layout.cuh"),
    "planes of the next image": ("image_of(plane) * (kImagePlanes - planes)", "0", "single_layout.cuh"),
    "Hermitian part": ("0.5f * (p.im - q.im)", "0.5f * (p.im + q.im)", "single_map.cuh"),
    "real part where a row is its own negative": ("p.im = q.im = 0.f", "p.im = 0.f", "single_map.cuh"),
    "residual": ("shrink(m.row[r].re, threshold) + scale", "shrink(m.row[r].re, threshold)", "single_map.cuh"),
    "scale of the threshold": ("scale * a.threshold", "a.threshold", "single_forward.cuh"),
    "a product of three left out": ("      mma_tf32(sum[m], in[m][q].hi, w[q].part.lo);\n", "", "single_map.cuh"),
    "sign of a weight's imaginary part": ("g % 2 == 0 ? -im : re", "g % 2 == 0 ? im : re", "single_map.cuh"),
    "the next images": ("ctas_per_block * a.images", "ctas_per_block * a.images + 1", "single_forward.cuh"),
    "the type of float16": ("first_of<Half::kFloat16>(x)", "first_of<Half::kBfloat16>(x)", "single_columns.cuh"),
    "the type of bfloat16": (
        "return store_half_column<Half::kBfloat16>",
        "return store_half_column<Half::kFloat16>",
        "single_columns.cuh",
    ),
    "the halves of a pair": ("(v[h].im, v[h].re);", "(v[h].re, v[h].im);", "single_columns.cuh"),
    "a NaN lost by ReLU": ("return a > b || a != a ? a : b; }", "return a > b ? a : b; }", "../device_math.h"),
}


# Three quads, whose last one has two planes; four quads, a plane too few for them, an odd height, and a batch that
# is no multiple of the images of a CTA.
MUTATION_CASES = (
    make_case(Shape(1, 10, 20, 8, 1)),
    make_case(Shape(5, 13, 7, 10, 1), "silu"),
    make_case(Shape(1, 10, 20, 8, 1), dtype=torch.float16),
    make_case(Shape(1, 10, 20, 8, 1), dtype=torch.bfloat16),
)


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutation_is_caught(tmp_path: Path, what: str) -> None:
    """Each bug, put into a copy of the kernels, shows in the emulator's report or in a wrong answer."""
    old, new, file = MUTATIONS[what]
    library = build(mutated(tmp_path, old, new, f"fused/{file}"), tmp_path / "single.so", "-O0", "{20,8,3},{7,10,4}")
    assert not all(is_right(emulate(library, case), case) for case in MUTATION_CASES) or loses_a_nan(library)


def loses_a_nan(library: ctypes.CDLL) -> bool:
    x = MUTATION_CASES[0].tensors[0].clone()
    x[0, 0, 0, 0] = np.nan
    case = MUTATION_CASES[0]._replace(tensors=(x, *MUTATION_CASES[0].tensors[1:]))
    return not bool(emulate(library, case).y.isnan().all())
