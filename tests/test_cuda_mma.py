"""The tensor-core kernels on the host emulator (tests/cuda_host/emulator.h) against float64, with the same bounds."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from affnet_kernels.activations import ACTIVATIONS
from tests.helpers import SHAPES, Shape, make_case, stored_case, stored_case_names
from tests.test_cuda_emulated import (
    CLEAN,
    ROOT,
    WORKSPACE,
    CallFacts,
    Options,
    assert_right,
    build,
    emulate,
    is_right,
    launch_plan,
    mutated,
    pointer,
)

QUADS = (2, 3, 4, 5, 6, 8, 10)
SMALL = Shape(2, 18, 5, 9, 2)  # three quads, the last of one channel; several tiles per CTA

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("emulated") / "mma.so"
    library = build(ROOT / "csrc", target, "-O1", "emulated_mma.cpp")
    library.mma_ctas_per_block.restype = ctypes.c_int64
    library.quotient.restype = ctypes.c_uint32
    return library


@pytest.mark.parametrize("name", SHAPES)
def test_shape(kernels: ctypes.CDLL, name: str) -> None:
    case = make_case(SHAPES[name])
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("name", stored_case_names())
def test_stored_case(kernels: ctypes.CDLL, name: str) -> None:
    case = stored_case(name)
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["odd width", "hidden twice the block"])
def test_activation(kernels: ctypes.CDLL, name: str, activation: str) -> None:
    case = make_case(SHAPES[name], activation=activation)
    assert_right(emulate(kernels, case), case)


@pytest.mark.parametrize("quads", QUADS)
@pytest.mark.parametrize("name", ["odd both", "two by two: DC and Nyquist only", "one channel a block", "a column"])
def test_every_instance(kernels: ctypes.CDLL, name: str, quads: int) -> None:
    """Even with most of its quads empty."""
    case = make_case(SHAPES[name])
    assert_right(emulate(kernels, case, Options(quads=quads, ctas_per_block=3)), case)


@pytest.mark.parametrize("chunk", [1, 3, 5])
@pytest.mark.parametrize("ctas", [1, 7])
def test_chunks_and_partial_sums(kernels: ctypes.CDLL, chunk: int, ctas: int) -> None:
    for case in (make_case(SHAPES["odd height"]), make_case(SMALL)):
        assert_right(emulate(kernels, case, Options(chunk=chunk, ctas_per_block=ctas)), case)


def test_groups_of_gradients(kernels: ctypes.CDLL) -> None:
    case = make_case(SHAPES["odd width"])
    both = emulate(kernels, case)
    without_input = emulate(kernels, case, Options(input_grad=False))
    without_parameters = emulate(kernels, case, Options(parameter_grads=False))
    for got, expected in zip(without_input.gradients[1:], both.gradients[1:], strict=True):
        assert np.array_equal(got, expected)
    assert np.array_equal(without_parameters.gradients[0], both.gradients[0])
    assert not any(gradient.any() for gradient in without_parameters.gradients[1:])


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_a_nan_stays_a_nan(kernels: ctypes.CDLL, bits: int) -> None:
    """A NaN of any bit pattern survives the split into two TF32 numbers, and stays in its block."""
    case = make_case(Shape(1, 12, 4, 6, 2))
    w1 = case.tensors[1].clone()
    w1[0, 0, 0, 0] = torch.tensor(bits).to(torch.int32).view(torch.float32)
    answer = emulate(kernels, case._replace(tensors=(case.tensors[0], w1, *case.tensors[2:])))
    assert np.isnan(answer.y[:, :6]).all()
    assert np.isfinite(answer.y[:, 6:]).all()
    dx, _, _, dw2, _ = answer.gradients  # in the others a NaN affects only a gate, which passes gradients on
    assert np.isnan(dx[:, :6]).all()
    assert np.isnan(dw2[:, 0, 0]).all()
    for gradient in answer.gradients[1:]:
        assert np.isfinite(gradient[:, 1]).all()


def test_layout_of_a_product(kernels: ctypes.CDLL) -> None:
    """The fragment layout of the PTX manual, against a plain matrix product; operands are truncated to TF32."""
    generator = np.random.default_rng(0)
    a, b, c = (generator.integers(-1000, 1000, size).astype(np.float32) for size in ((16, 8), (8, 8), (16, 8)))
    expected = a @ b + c
    assert kernels.run_product(pointer(a), pointer(b), pointer(c)).decode().startswith(CLEAN)
    assert np.array_equal(c, expected)
    a[:], b[:], c[:] = 1 + 2**-10 + 2**-11, 1, 0
    kernels.run_product(pointer(a), pointer(b), pointer(c))
    assert (c == 8 * (1 + 2**-10)).all()
    a[:], b[:], c[:] = 2**-10, -(2**-20), 1
    kernels.run_product(pointer(a), pointer(b), pointer(c))
    assert (c == 1 - 2**-24).all(), "sums are rounded towards zero"


@pytest.mark.parametrize("backward", [False, True])
def test_every_size_has_a_launch(kernels: ctypes.CDLL, backward: bool) -> None:
    """From 5 to 40 channels (backward 32) enough quads, and shared memory that every target has; else plain FMA."""
    for D, Dh in itertools.product(range(1, 129), range(1, 129)):
        plan = launch_plan(kernels, CallFacts(2, 16, 16, 8, D, Dh, WORKSPACE, 4, False, backward, True, True))
        assert (plan.quads > 0) == (4 < max(D, Dh) <= (32 if backward else 40))
        if plan.quads > 0:
            assert plan.quads in QUADS
            assert 4 * plan.quads >= max(D, Dh)
            assert plan.threads <= 256
            assert plan.shared_bytes <= 99 * 1024


def test_ctas_per_block(kernels: ctypes.CDLL) -> None:
    """No more than asked for; all have the same number of tiles, except that the last ones may have fewer."""
    for tiles in (0, 1, 5, 66, 67, 1000, 12345, 2**40):
        for K in (1, 3, 8, 1000):
            for ctas in (1, 3, 8):
                found = kernels.mma_ctas_per_block(ctypes.c_int64(tiles), K, ctas)
                assert 1 <= found <= max(1, 132 * ctas // K)
                assert found == 1 or (found - 1) * -(-tiles // found) < tiles


def test_division(kernels: ctypes.CDLL) -> None:
    generator = np.random.default_rng(0)
    for divisor in (1, 2, 3, 7, 15, 16, 17, 480, 992, 65535, 2**20 + 1, 2**30 - 1, 2**30):
        numbers = [0, 1, divisor - 1, divisor, 2**31 - 1, *(generator.integers(0, 2**31, 200))]
        numbers += [multiple * divisor - 1 for multiple in (1, 2, (2**31 - 1) // divisor)]
        for n in map(int, numbers):
            assert kernels.quotient(ctypes.c_uint32(n), ctypes.c_uint32(divisor)) == n // divisor


@pytest.mark.parametrize("name", ["shipped, D=13", "shipped, D=24"])
def test_bank_conflicts(kernels: ctypes.CDLL, name: str) -> None:
    """At most a tenth more wavefronts than without conflicts."""
    answer = emulate(kernels, make_case(SHAPES[name]), count_banks=True)
    for report in answer.reports[:2]:
        numbers = dict(word.split("=") for word in report.split(";")[0].split())
        assert int(numbers["wavefronts"]) <= 1.1 * int(numbers["ideal"]), report


MUTATIONS: dict[str, tuple[str, str, str]] = {  # what, text, replaced by
    "rows of a left operand": ("q.row[0].re, q.row[1].re,", "q.row[1].re, q.row[0].re,", "mma.cuh"),
    "a product of three left out": ("  mma_tf32(product, a.lo, b.hi);\n", "", "mma.cuh"),
    "sign of a weight's imaginary part": ("imaginary ? w.hi.re : -w.hi.im", "imaginary ? w.hi.re : w.hi.im", "mma.cuh"),
    "lanes of the adjoint": ("offset(j, q, lane.g / 2, lane.t)", "offset(j, q, lane.t, lane.g / 2)", "mma.cuh"),
    "no barrier after weights are staged": (
        "layers.stage(a, k);\n  barrier();",
        "layers.stage(a, k);",
        "spectral_map_mma.cuh",
    ),
    "symmetry of the special columns": ("special ? -scale : scale", "scale", "spectral_map_mma.cuh"),
    "the next block-image of a block": ("int64_t{image} * a.K)", "int64_t{image})", "spectral_map_mma.cuh"),
    "no barrier between tiles": (
        "  if (parameter_grads) barrier();  // the operands",
        "  // the operands",
        "spectral_map_vjp_mma.cuh",
    ),
    "no barrier before a weight gradient": (
        "barrier();\n    sums.first.add",
        "sums.first.add",
        "spectral_map_vjp_mma.cuh",
    ),
    "no barrier between weight gradients": ("barrier();  // the second", "// the second", "spectral_map_vjp_mma.cuh"),
    "no barrier between parts": (
        "    }\n    barrier();\n    if (warp >= kOctets) return;",
        "    }\n    if (warp >= kOctets) return;",
        "spectral_map_vjp_mma.cuh",
    ),
    "sign of a weight's gradient": ("d.im, d.im, -d.re", "d.im, d.im, d.re", "spectral_map_vjp_mma.cuh"),
    "weight of the special columns": ("{{d.row[0], {0.f, 0.f}}}", "{{d.row[0], d.row[1]}}", "spectral_map_vjp_mma.cuh"),
    "padding that nobody wrote": ("kQuads % 2 == 1", "false", "spectral_map_vjp_mma.cuh"),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutation_is_caught(tmp_path: Path, what: str) -> None:
    """Each bug, put into a copy of the kernels, shows in the emulator's report or in a wrong answer."""
    source = mutated(tmp_path, *MUTATIONS[what])
    library = build(
        source, tmp_path / "mma.so", "-O0", "emulated_mma.cpp", ("-DAFFNET_MMA_QUADS=3", "-DAFFNET_FMA_TILES=8")
    )
    case = make_case(SMALL)
    assert not is_right(emulate(library, case, Options(ctas_per_block=1)), case)
