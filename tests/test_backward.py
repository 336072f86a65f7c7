"""Every backend's gradients against float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from affnet_kernels import fused_aff_mixer
from affnet_kernels.activations import ACTIVATIONS
from tests.helpers import (
    GRADIENT_BOUND,
    SHAPES,
    assert_gradients,
    call,
    device_of,
    leaf,
    make_case,
    make_inputs,
    relative_error,
    stored_case,
    stored_case_names,
)
from tests.test_forward import HALVES, LAYOUTS, TYPICAL, assert_same, format_of, skip_unsupported


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", stored_case_names())
def test_stored_case(backend: str, name: str, dtype: torch.dtype) -> None:
    case = stored_case(name)
    skip_unsupported(backend, (case.tensors[0].to(dtype), case.tensors[1]), case.activation)
    _, gradients = call(case, backend, device_of(backend), dtype, gradients=True)
    assert_gradients(gradients, case)


@pytest.mark.parametrize("name", SHAPES)
def test_shape(backend: str, name: str) -> None:
    case = make_case(SHAPES[name])
    skip_unsupported(backend, case.tensors)
    _, gradients = call(case, backend, device_of(backend), gradients=True)
    assert_gradients(gradients, case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_activation_and_dtype(backend: str, dtype: torch.dtype, activation: str) -> None:
    for name in ("odd width", "shipped, D=13", "hidden twice the block"):
        case = make_case(SHAPES[name], dtype, activation)
        skip_unsupported(backend, case.tensors, activation)
        _, gradients = call(case, backend, device_of(backend), gradients=True)
        assert gradients[0].dtype == dtype
        assert_gradients(gradients, case)


@pytest.mark.parametrize("dtype", HALVES)
def test_parameters_of_a_half_model(dtype: torch.dtype) -> None:
    """16-bit parameters get 16-bit gradients."""
    case = make_case(TYPICAL, dtype)
    narrow = [leaf(tensor.to(dtype)) for tensor in case.tensors]
    wide = [narrow[0], *(leaf(parameter.float()) for parameter in narrow[1:])]
    got, expected = (torch.autograd.grad(fused_aff_mixer(*tensors), tensors, case.dy) for tensors in (narrow, wide))
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype
        assert torch.equal(g, e.to(dtype))


@pytest.mark.parametrize("needed", [s for n in range(1, 6) for s in itertools.combinations(range(5), n)])
def test_every_subset_of_gradients(backend: str, needed: tuple[int, ...]) -> None:
    case = make_case(SHAPES["odd both"])
    skip_unsupported(backend, case.tensors)
    tensors = [leaf(t.to(device_of(backend)), i in needed) for i, t in enumerate(case.tensors)]
    fused_aff_mixer(*tensors, backend=backend).backward(case.dy.to(tensors[0]))
    for index, (tensor, expected) in enumerate(zip(tensors, case.gradients, strict=True)):
        if index in needed:
            assert relative_error(tensor.grad, expected) <= GRADIENT_BOUND[torch.float32]
        else:
            assert tensor.grad is None


def test_expanded_cotangent(backend: str) -> None:
    """`y.sum().backward()` hands over a gradient of stride 0."""
    tensors = [t.to(device_of(backend)).requires_grad_() for t in make_inputs(TYPICAL)]
    skip_unsupported(backend, tuple(tensors))
    y = fused_aff_mixer(*tensors, backend=backend)
    expanded = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    for got, expected in zip(expanded, torch.autograd.grad(y, tensors, torch.ones_like(y)), strict=True):
        assert_same(backend, got, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(backend: str, layout: str) -> None:
    case = make_case(TYPICAL)
    skip_unsupported(backend, case.tensors)
    device = device_of(backend)
    x, *parameters = (t.to(device) for t in case.tensors)
    tensors = [LAYOUTS[layout](x).detach().requires_grad_(), *(leaf(parameter) for parameter in parameters)]
    dy = LAYOUTS[layout](case.dy.to(device))
    gradients = torch.autograd.grad(fused_aff_mixer(*tensors, backend=backend), tensors, dy)
    assert gradients[0].is_contiguous(memory_format=format_of(layout))
    assert_gradients(gradients, case)


def test_gradients_repeat_bit_for_bit(backend: str) -> None:
    case = make_case(SHAPES["shipped, D=13"])
    skip_unsupported(backend, case.tensors)
    first, second = (call(case, backend, device_of(backend), gradients=True)[1] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_nan_reaches_the_gradients_of_its_block_only(backend: str) -> None:
    shape = SHAPES["shipped, D=13"]
    x, *parameters = make_inputs(shape)
    skip_unsupported(backend, (x, *parameters))
    x[1, shape.block_size, 3, 3] = math.nan
    tensors = [t.to(device_of(backend)).requires_grad_() for t in (x, *parameters)]
    y = fused_aff_mixer(*tensors, backend=backend)
    dx, *others = (g.cpu() for g in torch.autograd.grad(y, tensors, torch.ones_like(y)))
    channels = slice(shape.block_size, 2 * shape.block_size)
    assert not dx[1, channels].isfinite().any()
    dx[1, channels] = 0
    assert dx.isfinite().all()
    for gradient in others:
        assert gradient[:, 1].isnan().any()
        assert gradient[:, [0, *range(2, shape.blocks)]].isfinite().all()


def test_saves_only_the_arguments() -> None:
    tensors = [t.requires_grad_() for t in make_inputs(TYPICAL)]
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused_aff_mixer(*tensors)
    assert sorted(t.data_ptr() for t in saved) == sorted(t.data_ptr() for t in tensors)


def test_guard_bands(backend: str) -> None:
    for name in ("odd both", "224 pixels, 7x7", "shipped, D=13"):
        case = make_case(SHAPES[name])
        skip_unsupported(backend, case.tensors)
        device = device_of(backend)
        originals = (*case.tensors, case.dy)
        buffers = [torch.full((t.numel() + 128,), math.nan, device=device) for t in originals]
        *inside, dy = (b[64:-64].view(t.shape).copy_(t) for b, t in zip(buffers, originals, strict=True))
        inside = [tensor.requires_grad_() for tensor in inside]
        gradients = torch.autograd.grad(fused_aff_mixer(*inside, backend=backend), inside, dy)
        assert_gradients(gradients, case)
        for buffer, tensor in zip(buffers, originals, strict=True):
            assert buffer[:64].isnan().all()
            assert buffer[-64:].isnan().all()
            assert torch.equal(buffer[64:-64].view(tensor.shape).detach().cpu(), tensor)
