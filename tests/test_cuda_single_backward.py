"""The one-launch backward kernel on the host emulator against the five float64 gradients."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from affnet_kernels.activations import ACTIVATIONS
from tests.helpers import Case, Shape, assert_gradients, make_case, relative_error
from tests.test_cuda_emulated import CLEAN, HOST, ROOT, mutated, pointer
from tests.test_cuda_single import ACTIVATIONS_IN_CPP, ELEMENTS, HALVES, SHIPPED, Arguments, Plan, name_of, plan_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class VjpArguments(ctypes.Structure):
    """affnet::SingleVjpArguments of csrc/cuda/fused/single_arguments.h."""

    _fields_ = [
        ("call", Arguments),
        ("dy", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
        ("input_grad", ctypes.c_bool),
    ]


def build(source: Path, target: Path, level: str = "-O1", instances: str = "") -> ctypes.CDLL:
    """A library of the kernels under `source` and their instances {H, W, quads}."""
    command = ["g++", level, "-std=c++20", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    if instances:
        command.append(f"-DAFFNET_SINGLE_INSTANCES={instances}")
    done = subprocess.run(
        [*command, f"-I{source}", f"-I{HOST}", str(HOST / "emulated_single_backward.cpp"), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    library.run_single_backward.restype = ctypes.c_char_p
    library.plan_single.restype = None
    sizes = (ctypes.c_int * 2)()
    library.single_bytes(sizes)
    assert [*sizes] == [ctypes.sizeof(Plan), ctypes.sizeof(VjpArguments)]
    return library


class Answer(NamedTuple):
    gradients: tuple[Tensor, ...]  # of x, w1, b1, w2, b2
    report: str
    plan: Plan


def emulate(
    library: ctypes.CDLL,
    case: Case,
    ctas_per_block: int = 1,
    input_grad: bool = True,
    parameter_grads: bool = True,
    count_banks: bool = False,
) -> Answer:
    """The backward pass and the sum of its partial sums, by fewer CTAs than the plan has."""
    tensors = [tensor.contiguous() for tensor in case.tensors]
    x, w1, b1, w2, b2 = tensors
    B, C, H, W = x.shape
    K, D = w1.shape[1:3]
    plan = plan_of(library, Shape(B, C, H, W, K))
    assert plan.instance >= 0
    plan.ctas_per_block = ctas_per_block or plan.ctas_per_block
    gradients = [torch.full_like(tensor, np.nan) for tensor in tensors]
    partials = np.full((K, plan.ctas_per_block, 4 * D * D + 4 * D), np.nan, np.float32)
    call = Arguments(
        *(tensor.data_ptr() for tensor in (x, gradients[0], w1, b1, w2, b2)),
        *(B, plan.ctas_per_block, K, D, H, W, plan.images, plan.strides, case.sparsity_threshold),
        ACTIVATIONS_IN_CPP.index(case.activation),
        ELEMENTS.index(x.dtype),
    )
    arguments = VjpArguments(
        call, case.dy.contiguous().data_ptr(), pointer(partials if parameter_grads else None), input_grad
    )
    report = library.run_single_backward(
        ctypes.byref(arguments),
        ctypes.byref(plan),
        ctypes.c_bool(count_banks),
        *(ctypes.c_void_p(gradient.data_ptr()) for gradient in gradients[1:]),
    )
    return Answer(tuple(gradients), report.decode(), plan)


def assert_right(answer: Answer, case: Case) -> None:
    assert answer.report.startswith(CLEAN), answer.report
    assert_gradients(answer.gradients, case)


def is_right(answer: Answer, case: Case) -> bool:
    try:
        assert_right(answer, case)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(ROOT / "csrc", tmp_path_factory.mktemp("emulated") / "backward.so", instances=INSTANCES)


# Most of the sizes' own instances, and those for any sizes, so that the library compiles in ten seconds.
INSTANCES = ",".join(
    f"{{{sizes}}}"
    for sizes in (
        "32,32,4",
        "28,28,2",
        "16,16,8",
        "14,14,4",
        "8,8,6",
        "7,7,5",
        *(f"0,0,{q}" for q in (2, 3, 4, 5, 6, 8)),
    )
)
SHIPPED_SHAPES = [
    Shape(3 if N <= 16 else 1, D, N, N, 1)
    for N, sizes in SHIPPED.items()
    for D in sizes
    if D <= 32 and N not in (20, 40)
]
OTHER_SHAPES = [
    Shape(2, 2 * 9, 14, 10, 2),
    Shape(3, 2 * 5, 7, 40, 2),
    Shape(2, 11, 40, 7, 1),
    Shape(2, 17, 8, 20, 1),
    Shape(1, 24, 20, 10, 1),
]


@pytest.mark.parametrize("shape", SHIPPED_SHAPES + OTHER_SHAPES, ids=name_of)
def test_shape(kernels: ctypes.CDLL, shape: Shape) -> None:
    """All images of a block go through one CTA, whose sums are all there is to add."""
    case = make_case(shape)
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(kernels: ctypes.CDLL, activation: str) -> None:
    case = make_case(Shape(3, 2 * 18, 7, 8, 2), activation=activation)
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "shape",
    [Shape(2, 16, 32, 32, 1), Shape(3, 32, 16, 16, 1), Shape(3, 2 * 13, 7, 10, 2), Shape(2, 18, 8, 8, 1)],
    ids=name_of,
)
def test_a_16_bit_type_is_rounded_once(kernels: ctypes.CDLL, shape: Shape, dtype: torch.dtype) -> None:
    """x, dy and dx have it: dx has the error of rounding it, to a hundredth, the parameters' gradients float32's."""
    for activation in ("relu", "silu"):
        case = make_case(shape, dtype, activation)
        answer = emulate(kernels, case)
        assert_right(answer, case)
        assert [gradient.dtype for gradient in answer.gradients] == [dtype, *(4 * [torch.float32])]
        rounding = relative_error(case.gradients[0].to(dtype), case.gradients[0])
        assert relative_error(answer.gradients[0], case.gradients[0]) <= 1.01 * rounding


@pytest.mark.parametrize("ctas_per_block", [1, 2, 0])
def test_partial_sums(kernels: ctypes.CDLL, ctas_per_block: int) -> None:
    """Several CTAs of a block, several images each; the same bits at every run, and dx whatever their number is."""
    case = make_case(Shape(5, 2 * 13, 8, 14, 2))
    answer, again = emulate(kernels, case, ctas_per_block), emulate(kernels, case, ctas_per_block)
    assert_right(answer, case)
    for one, other in zip(answer.gradients, again.gradients, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(answer.gradients[0], emulate(kernels, case, 1).gradients[0])


@pytest.mark.parametrize("D", [13, 18])
def test_groups_of_gradients(kernels: ctypes.CDLL, D: int) -> None:
    case = make_case(Shape(2, D, 8, 7, 1))
    both = emulate(kernels, case)
    without_input = emulate(kernels, case, input_grad=False)
    without_parameters = emulate(kernels, case, parameter_grads=False)
    for answer in (without_input, without_parameters):
        assert answer.report.startswith(CLEAN), answer.report
    for got, expected in zip(without_input.gradients[1:], both.gradients[1:], strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(without_parameters.gradients[0], both.gradients[0])
    assert without_input.gradients[0].isnan().all()
    assert all(gradient.isnan().all() for gradient in without_parameters.gradients[1:])


def test_bank_conflicts(kernels: ctypes.CDLL) -> None:
    for shape in (Shape(1, 16, 32, 32, 1), Shape(2, 32, 16, 16, 1)):
        report = emulate(kernels, make_case(shape), count_banks=True).report
        numbers = dict(word.split("=") for word in report.split(";")[0].split())
        assert int(numbers["wavefronts"]) <= 1.1 * int(numbers["ideal"]), report


def test_plans(kernels: ctypes.CDLL) -> None:
    """Blocks of more than 32 channels take another path; so does what exceeds a device's shared memory."""
    for D, N in ((16, 32), (12, 40), (32, 20), (24, 8)):
        shape = Shape(64, 8 * D, N, N, 8)
        plan = plan_of(kernels, shape)
        assert plan.instance >= 0
        assert plan.threads <= 256
        assert 1 <= plan.ctas_per_block <= 64
        assert plan_of(kernels, shape, plan.shared_bytes - 1).instance == -1
        less = plan_of(kernels, shape, plan.shared_bytes)
        assert (less.ctas, less.ctas_per_block) == (plan.ctas, plan.ctas_per_block), "the grid depends on the device"
    assert plan_of(kernels, Shape(64, 320, 8, 8, 8)).instance == -1
    assert plan_of(kernels, Shape(64, 128, 40, 40, 8)).instance == -1


MUTATIONS: dict[str, tuple[str, str, str]] = {  # what, text, replaced by
    "no barrier after columns": (
        "x.H(), x.W());\n    barrier();\n    run_pass<kW>(RowPass",
        "x.H(), x.W());\n    run_pass<kW>(RowPass",
        "single_backward.cuh",
    ),
    "no barrier before the map": (
        "    barrier();\n    const SingleTiling",
        "    const SingleTiling",
        "single_backward.cuh",
    ),
    "no barrier after the map": (
        "    barrier();\n    if (!a.input_grad)",
        "    if (!a.input_grad)",
        "single_backward.cuh",
    ),
    "no barrier before the columns back": (
        "    barrier();\n    run_pass<kH>(InverseColumn",
        "    run_pass<kH>(InverseColumn",
        "single_backward.cuh",
    ),
    "no barrier between tiles": (
        "  if (parameter_grads) barrier();  // the operands",
        "  // the operands",
        "single_vjp_map.cuh",
    ),
    "no barrier before a weight gradient": (
        "    barrier();\n    sums.second.add",
        "    sums.second.add",
        "single_vjp_map.cuh",
    ),
    "no barrier between weight gradients": (
        "    barrier();                           // the second",
        "    // the second",
        "single_vjp_map.cuh",
    ),
    "no barrier after the sums are stored": (
        "    barrier();\n    if (warp >= kOctets) return;",
        "    if (warp >= kOctets) return;",
        "single_vjp_map.cuh",
    ),
    "regular frequencies count twice": ("2.f * d.row[0].re", "d.row[0].re", "single_vjp_map.cuh"),
    "the only own negative of an odd height": ("rows.own && x_layout.H() % 2 == 1", "false", "single_vjp_map.cuh"),
    "the residual": ("direct[q].row[r].re += G[q].row[r].re, ", "", "single_vjp_map.cuh"),
    "scale of dx": ("2.f * scale", "scale", "single_vjp_map.cuh"),
    "the order of channels of a sum": (
        "SingleVjpLayers<kQuads>::channel(octet) : D",
        "octet : D",
        "single_vjp_map.cuh",
    ),
    "images beyond the last": ("a.B - first < a.images ?", "false ?", "single_layout.cuh"),
    "the place of dy's planes": (
        "g_rows.row[r].negative += g_layout.start - x_layout.start;\n",
        "",
        "single_vjp_map.cuh",
    ),
    "the type of bfloat16": (
        "return store_half_column<Half::kBfloat16>",
        "return store_half_column<Half::kFloat16>",
        "single_columns.cuh",
    ),
    "the type of float16": ("first_of<Half::kFloat16>(x)", "first_of<Half::kBfloat16>(x)", "single_columns.cuh"),
    "planes of dy are not cleared": ("  clear_missing_planes(g);\n", "", "single_backward.cuh"),
}
# Three quads and an odd height; four quads, a plane too few for them, and an image too few for a CTA.
MUTATION_SHAPES = (Shape(1, 10, 8, 7, 1), Shape(3, 13, 7, 8, 1))


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutation_is_caught(tmp_path: Path, what: str) -> None:
    """Each bug, put into a copy of the kernels, shows in the emulator's report or in a wrong answer."""
    old, new, file = MUTATIONS[what]
    source = mutated(tmp_path, old, new, f"fused/{file}")
    library = build(source, tmp_path / "backward.so", "-O0", "{8,7,3},{0,0,4}")
    cases = [*map(make_case, MUTATION_SHAPES), *(make_case(MUTATION_SHAPES[0], dtype) for dtype in HALVES)]
    alone = [{"input_grad": False}, {"parameter_grads": False}]  # some barriers matter only if one group is wanted
    assert not all(
        is_right(emulate(library, case), case)
        and all(emulate(library, case, **group).report.startswith(CLEAN) for group in alone)
        for case in cases
    )
