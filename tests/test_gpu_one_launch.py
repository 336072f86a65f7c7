"""Tests of the one-launch CUDA kernels that need a device; the tests of all backends run them too."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import native
from tests.helpers import Case, Shape, assert_forward, make_case, make_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(bool(available_backends()["cuda"]), reason="; ".join(available_backends()["cuda"])),
]

RELEASED = ((8, 32), (12, 32), (16, 32), (13, 16), (20, 16), (32, 16), (18, 8), (24, 8), (40, 8))  # D, and H = W
OTHERS = ((8, 28), (13, 14), (18, 7), (8, 40), (20, 20), (18, 10))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def extension() -> Iterator[ModuleType]:
    """The extension. Its setting is put back."""
    module = native.EXTENSION
    assert module is not None
    yield module
    module.set_one_launch(True)


def shape_of(D: int, size: int, batch: int = 3) -> Shape:
    return Shape(batch, 4 * D, size, size, 4)


def forward(case: Case) -> Tensor:
    """y, by one launch: a device that has too little shared memory skips the test."""
    tensors = [tensor.cuda() for tensor in case.tensors]
    path = native.CUDA.path(MixerSpec.of(*tensors[:2], case.activation), False)
    if "shared memory" in path.why:
        pytest.skip(path.why)
    assert path == ("one-launch", "")
    with torch.no_grad():
        return fused_aff_mixer(*tensors, activation=case.activation, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "size"), RELEASED + OTHERS)
def test_size(D: int, size: int, dtype: torch.dtype) -> None:
    case = make_case(shape_of(D, size), dtype, "silu")
    assert_forward(forward(case), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, dtype: torch.dtype) -> None:
    case = make_case(shape_of(16, 16), dtype, activation)
    assert_forward(forward(case), case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rectangle(dtype: torch.dtype) -> None:
    case = make_case(Shape(2, 32, 8, 16, 2), dtype, "silu")
    assert_forward(forward(case), case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_images_repeat_bit_for_bit(extension: ModuleType, dtype: torch.dtype) -> None:
    """More images than CTAs have at once; by cuFFT the answer is the same up to rounding."""
    case = make_case(shape_of(18, 8, batch=600), dtype, "silu")
    first = forward(case)
    assert_forward(first, case)
    assert all(torch.equal(forward(case), first) for _ in range(3))
    extension.set_one_launch(False)
    assert_forward(fused_aff_mixer(*(t.cuda() for t in case.tensors), activation="silu", backend="cuda"), case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_call_can_be_captured(extension: ModuleType, dtype: torch.dtype) -> None:
    """No cuFFT plan is made, so that nothing has to run before."""
    extension.clear_plan_cache(0)
    before = extension.plan_cache_info(0)
    tensors = [tensor.cuda() for tensor in make_inputs(shape_of(13, 16), dtype)]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = fused_aff_mixer(*tensors, activation="silu", backend="cuda")
    tensors[0].mul_(0.5)
    graph.replay()
    with torch.no_grad():
        assert torch.equal(captured, fused_aff_mixer(*tensors, activation="silu", backend="cuda"))
    assert extension.plan_cache_info(0) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channels-last", "every second row", "misaligned"])
def test_layout(layout: str, dtype: torch.dtype) -> None:
    x, *parameters = (tensor.cuda() for tensor in make_inputs(shape_of(16, 32), dtype))
    laid_out = {
        "channels-last": lambda: x.contiguous(memory_format=torch.channels_last),
        "every second row": lambda: x.repeat_interleave(2, 2)[:, :, ::2],
        "misaligned": lambda: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    }[layout]()
    with torch.no_grad():
        expected = fused_aff_mixer(x, *parameters, backend="cuda")
        y = fused_aff_mixer(laid_out, *parameters, backend="cuda")
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "channels-last")


def test_no_bfloat16_overflows() -> None:
    """x ten thousand times as large: the mask grows with x, and the answer with the square of it."""
    x, *parameters = (tensor.cuda() for tensor in make_inputs(shape_of(16, 32), torch.bfloat16))
    with torch.no_grad():
        y = fused_aff_mixer(x * 1e4, *parameters, backend="cuda")
        wide = fused_aff_mixer(x.float() * 1e4, *parameters, backend="cuda")
    assert torch.isfinite(y).all()
    assert (y.float() - wide).norm() <= 4e-3 * wide.norm()
