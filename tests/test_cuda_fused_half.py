"""The one-launch bfloat16 forward kernel on the host emulator against float64."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from pathlib import Path

import pytest
import torch

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends.reference import mixer
from tests.fused_half import (
    FEW_INSTANCES,
    Call,
    aligned,
    build,
    emulate,
    errors,
    inputs_of,
    plan_of,
)
from tests.helpers import ROUNDING_EXTRA, ROUNDING_FACTOR
from tests.test_cuda_emulated import CLEAN, ROOT, mutated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# What float16 inside costs the branch, beside the rounding of y: seven or eight roundings of 2.8e-4 on the mean.
BRANCH_BOUND = 1.5e-3
SIZES = {
    32: (8, 12, 16),
    28: (8, 12, 16),
    40: (8, 12, 16),
    16: (13, 20, 32),
    14: (13, 20, 32),
    20: (13, 20),
    8: (18, 24, 40),
}
SHAPES = [(D, N, N) for N, channels in SIZES.items() for D in channels]
SHAPES += [(D, N, N) for N in (7, 8) for D in (18, 24, 40)]
SHAPES += [(18, 10, 10), (32, 20, 20), (40, 28, 28), (40, 32, 32), (18, 32, 32)]
RECTANGLES = [(16, 32, 16), (13, 8, 14), (12, 28, 40), (9, 7, 20), (16, 20, 7), (10, 40, 8)]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(ROOT / "csrc", tmp_path_factory.mktemp("fused") / "half.so", "-O1")


def check(library: ctypes.CDLL, call: Call, **changes: bool) -> None:
    inputs = inputs_of(call)
    answer = emulate(library, call, inputs, **changes)
    assert answer.report.startswith(CLEAN), answer.report
    found = errors(answer, call, inputs)
    assert found.y <= ROUNDING_FACTOR * found.rounding + ROUNDING_EXTRA, found
    assert found.branch <= BRANCH_BOUND, found


@pytest.mark.parametrize(("D", "H", "W"), SHAPES + RECTANGLES)
def test_shape(kernel: ctypes.CDLL, D: int, H: int, W: int) -> None:
    """Two images after one another in a CTA."""
    activation = "silu" if D % 2 == 0 else "relu"
    check(kernel, Call(2, 1, D, H, W, activation, ctas=1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(kernel: ctypes.CDLL, activation: str) -> None:
    for size in (16, 14):
        check(kernel, Call(3, 2, 16, size, size, activation, ctas=4))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 10.0])
def test_threshold(kernel: ctypes.CDLL, threshold: float) -> None:
    """With the last one all of the mask is zero, and y is x."""
    for activation in ("relu", "gelu"):
        call = Call(1, 1, 16, 16, 16, activation, threshold=threshold)
        if threshold < 10:
            check(kernel, call)
        else:
            call = call._replace(scale=0.1)
            inputs = inputs_of(call)
            assert torch.equal(emulate(kernel, call, inputs).y, inputs.x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e2, 1e4])
def test_range(kernel: ctypes.CDLL, activation: str, scale: float) -> None:
    """x up to 10000 times larger: nothing overflows, and nothing is lost that float16 would have kept.

    tanh of numbers of thousands is their sign, and the rounding of X decides the sign of 1 in 2000 of them.
    """
    call = Call(2, 1, 16, 14, 16, activation, scale=scale, ctas=1)
    inputs = inputs_of(call)
    answer = emulate(kernel, call, inputs)
    assert answer.report.startswith(CLEAN), answer.report
    found = errors(answer, call, inputs)
    signs = 0.03 if activation == "tanh" and scale == 1e4 else 0.0
    assert found.y <= ROUNDING_FACTOR * found.rounding + ROUNDING_EXTRA + signs, found


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_largest_numbers_stay_finite(kernel: ctypes.CDLL, activation: str) -> None:
    """The worst input of a bound: equal elements, all of whose energy is in one frequency, and equal weights."""
    for scale in (1e3, 1e5, 1e7):
        call = Call(2, 1, 16, 32, 32, activation, ctas=1)
        inputs = inputs_of(call)
        x = torch.full_like(inputs.x, scale)
        x[1] *= (-1) ** torch.arange(32)  # the Nyquist frequency
        parameters = tuple(torch.ones_like(p) for p in inputs.parameters)
        for p in parameters:
            p[1] = 0  # the imaginary part, so that nothing cancels
        inputs = inputs._replace(x=x, parameters=parameters)
        answer = emulate(kernel, call, inputs)
        assert answer.report.startswith(CLEAN), answer.report
        found = errors(answer, call, inputs)
        assert found.y <= ROUNDING_FACTOR * found.rounding + ROUNDING_EXTRA, (scale, found)


def test_channels_of_very_different_size(kernel: ctypes.CDLL) -> None:
    """Every channel of y is right in itself, whether it is 1000 times larger or smaller than the others."""
    for largest in (1.0, 1e4):
        call = Call(1, 1, 16, 16, 16, ctas=1)
        inputs = inputs_of(call)
        scale = largest * torch.logspace(0, -3, 16).view(1, 16, 1, 1)
        inputs = inputs._replace(x=(inputs.x.float() * scale).bfloat16())
        answer = emulate(kernel, call, inputs)

        expected = mixer(inputs.x.double(), tuple(p.double() for p in inputs.parameters), 0.01, "relu")
        difference = (answer.y.double() - expected).flatten(2).norm(dim=-1) / expected.flatten(2).norm(dim=-1)
        assert difference.max() <= 6e-3, (largest, difference)


def test_a_nan_stays_in_its_image(kernel: ctypes.CDLL) -> None:
    for size in (14, 16):
        call = Call(3, 1, 8, size, size, ctas=1)
        inputs = inputs_of(call)
        clean = emulate(kernel, call, inputs).y
        inputs.x[1, 3, 2, 5] = float("nan")
        answer = emulate(kernel, call, inputs)
        assert torch.equal(answer.y[[0, 2]], clean[[0, 2]])
        assert answer.y[1].isnan().all()


@pytest.mark.parametrize("alignment", [2, 4, 8])
def test_alignment(kernel: ctypes.CDLL, alignment: int) -> None:
    for size in (16, 14, 8):
        call = Call(2, 1, 9, size, size, alignment=alignment, ctas=1)
        assert plan_of(kernel, call).granule == min(alignment, {16: 16, 14: 4, 8: 16}[size])
        assert aligned(8, alignment).ctypes.data % 16 == alignment % 16
        check(kernel, call)


@pytest.mark.parametrize(("batch", "blocks", "ctas"), [(1, 3, 3), (5, 2, 4), (7, 3, 6), (4, 1, 3)])
def test_any_batch_on_any_grid(kernel: ctypes.CDLL, batch: int, blocks: int, ctas: int) -> None:
    """The answer depends neither on the grid nor on the other images."""
    call = Call(batch, blocks, 12, 16, 16, "silu", ctas=ctas)
    check(kernel, call)
    inputs = inputs_of(call)
    assert torch.equal(emulate(kernel, call, inputs).y, emulate(kernel, call._replace(ctas=blocks), inputs).y)


@pytest.mark.parametrize(("D", "H", "W"), [(16, 32, 32), (32, 16, 16), (12, 40, 40), (18, 8, 8), (20, 28, 28)])
def test_bank_conflicts(kernel: ctypes.CDLL, D: int, H: int, W: int) -> None:
    """At most three percent more wavefronts than without conflicts, but for the copies of rows that are no 16 bytes.

    There are more where weights are put into shared memory, which a CTA does once.
    """
    call = Call(8, 1, D, H, W, "silu", ctas=1)
    report = emulate(kernel, call, inputs_of(call), count_banks=True).report
    numbers = dict(word.split("=") for word in report.split(";")[0].split())
    allowed = 1.03 if H % 16 == 0 else 1.25
    assert int(numbers["wavefronts"]) <= allowed * int(numbers["ideal"]), report


def test_plans(kernel: ctypes.CDLL) -> None:
    """Every size of the table has a plan if it fits, and no other has."""
    lengths = (7, 8, 10, 14, 16, 20, 28, 32, 40)
    for D, H, W in itertools.product((4, 5, 8, 13, 16, 18, 32, 40, 41), lengths, lengths):
        plan = plan_of(kernel, Call(64, 8, D, H, W))
        if plan.tiles == 0:
            assert D in (4, 41) or (max(H, W) == 40 and D > 16), (D, H, W)
            continue
        assert plan.tiles == -(-max(H, W) // 16)
        assert 4 * plan.quads >= D
        assert plan.shared_bytes <= 227 * 1024
        assert plan.threads in (128, 192, 256)
        assert plan.ctas % 8 == 0
        assert plan.ctas <= 64 * 8
        assert plan_of(kernel, Call(64, 8, D, H, W), plan.shared_bytes - 1).tiles == 0
    for call in (Call(1, 1, 16, 9, 16), Call(1, 1, 16, 16, 64), Call(1, 1, 16, 16, 16, alignment=1)):
        assert plan_of(kernel, call).tiles == 0
    assert plan_of(kernel, Call(1, 1, 16, 40, 40, alignment=2)).tiles == 0


MUTATIONS: dict[str, tuple[str, str, str]] = {  # what, text, replaced by, in csrc/cuda/fused
    "no barrier before the map": (
        "    barrier();\n    const Guard",
        "    const Guard",
        "half_forward.cuh",
    ),
    "no barrier after the map": (
        "guard);\n    barrier();\n    InverseConstants",
        "guard);\n    InverseConstants",
        "half_forward.cuh",
    ),
    "planes are not waited for": ("if (kTiles == 1) wait_for_plane(0);", "", "half_forward.cuh"),
    "one plane too few is waited for": (": planes - 1;", ": planes;", "half_forward.cuh"),
    "y is stored before the warp is done": (
        "      warp_barrier();\n      store_plane",
        "      store_plane",
        "half_forward.cuh",
    ),
    "the next plane overwrites y": (
        "      warp_barrier();\n      if (more)",
        "      if (more)",
        "half_forward.cuh",
    ),
    "the next image is loaded twice": ("image + groups : image", "image : image", "half_forward.cuh"),
    "sign of the sines": ("CS : subtract_pairs(CS, SC)", "CS : add_pairs(CS, SC)", "half_transform.cuh"),
    "row H / 2": ("first ? SC : subtract_pairs(CC, SS)", "subtract_pairs(CC, SS)", "half_transform.cuh"),
    "the imaginary part of column 0": ("kMinus = 0x8000", "kMinus = 0", "half_transform.cuh"),
    "corners of the mirrored columns": (
        "(first ? im[n] : re[n]) & kLow",
        "re[n] & kLow",
        "half_transform.cuh",
    ),
    "weight of column 0": ("kHalf = 0x38003800", "kHalf = 0x3c003c00", "half_transform.cuh"),
    "corners of the inverse": (
        "subtract_pairs(nyquist_im, m[3]), nyquist_re, first)",
        "subtract_pairs(nyquist_im, m[3]), nyquist_re, false)",
        "half_transform.cuh",
    ),
    "an even row of the spectrum": ("kStride = 2 * kSlots + 16", "kStride = 2 * kSlots + 8", "half_transform.cuh"),
    "what bfloat16 leaves of the constants": (
        "mma<Half::kBfloat16>(rows[n], rest.at, b);",
        "static_cast<void>(rest);",
        "half_transform.cuh",
    ),
    "conjugate of the weights": ("of_imaginary ? re : -im", "of_imaginary ? re : im", "half_weights.cuh"),
    "the power of two of a channel": (
        "Half::kFloat16>(factor, factor);",
        "Half::kFloat16>(1.f, factor);",
        "half_map.cuh",
    ),
    "a tile of slots too few": ("kSlots / 16);", "kSlots / 16) - 1;", "half_map.cuh"),
    "SiLU's argument": ("Activation::kSilu ? 0.5f : 1.f", "Activation::kSilu ? 1.f : 1.f", "half_forward.cuh"),
    "the guard of the common power of two": ("if (!fast) {", "if (false) {", "half_guard.cuh"),
    "the guard of a plane": ("return root * most > kHalfMost;", "return root * most > 1e9f;", "half_guard.cuh"),
    "the power of two of large tiles": ("? e + plane(most, root)", "? e", "half_guard.cuh"),
    "padding of channels": ("clear(static_cast<uint32_t>(2 * a.D) * at.stride, at.x);", "", "half_forward.cuh"),
    "padding of x": ("if (!kWhole) clear(at.x, at.staging);", "", "half_forward.cuh"),
}


def is_right(library: ctypes.CDLL, call: Call) -> bool:
    inputs = inputs_of(call)
    answer = emulate(library, call, inputs, count_banks=True)
    found = errors(answer, call, inputs)
    numbers = dict(word.split("=") for word in answer.report.split(";")[0].split())
    conflicts = int(numbers["wavefronts"]) > 1.4 * int(numbers["ideal"])
    return answer.report.startswith(CLEAN) and found.branch <= BRANCH_BOUND and not conflicts


MUTATED_CALLS = (
    Call(3, 1, 16, 16, 16, "relu", ctas=2),
    Call(2, 1, 13, 28, 28, "silu", ctas=1),
    Call(1, 1, 16, 16, 16, "silu", scale=3e2),
    Call(1, 1, 16, 16, 16, "silu", scale=1e5),
)


def test_the_mutated_calls_are_right(kernel: ctypes.CDLL) -> None:
    assert all(is_right(kernel, call) for call in MUTATED_CALLS)


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutation_is_caught(tmp_path: Path, what: str) -> None:
    """Each bug, put into a copy of the kernel, shows in the emulator's report or in a wrong answer."""
    old, new, file = MUTATIONS[what]
    library = build(mutated(tmp_path, old, new, f"fused/{file}"), tmp_path / "half.so", FEW_INSTANCES)
    assert not all(is_right(library, call) for call in MUTATED_CALLS)
