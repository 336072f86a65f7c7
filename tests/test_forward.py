"""Every backend's output against float64."""

from __future__ import annotations

import inspect
import math
import textwrap
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from affnet_kernels import available_backends, fused_aff_mixer
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import reference
from tests.helpers import (
    SHAPES,
    Shape,
    assert_forward,
    branch_error,
    call,
    device_of,
    make_case,
    make_inputs,
    stored_case,
    stored_case_names,
    why_not,
)

HALVES = (torch.float16, torch.bfloat16)
TYPICAL = SHAPES["odd height"]


def skip_unsupported(backend: str, tensors: tuple[torch.Tensor, ...], activation: str = "relu") -> None:
    if reasons := why_not(backend, tensors, activation):
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", stored_case_names())
def test_stored_case(backend: str, name: str, dtype: torch.dtype) -> None:
    case = stored_case(name)
    skip_unsupported(backend, (case.tensors[0].to(dtype), case.tensors[1]), case.activation)
    y, _ = call(case, backend, device_of(backend), dtype)
    assert_forward(y, case)


@pytest.mark.parametrize("name", SHAPES)
def test_shape(backend: str, name: str) -> None:
    case = make_case(SHAPES[name])
    skip_unsupported(backend, case.tensors)
    y, _ = call(case, backend, device_of(backend))
    assert_forward(y, case)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_activation_and_dtype(backend: str, dtype: torch.dtype, activation: str) -> None:
    for name in ("odd width", "shipped, D=13", "hidden twice the block"):
        case = make_case(SHAPES[name], dtype, activation)
        skip_unsupported(backend, case.tensors, activation)
        y, _ = call(case, backend, device_of(backend))
        assert y.dtype == dtype
        assert_forward(y, case)


@pytest.mark.parametrize("dtype", HALVES)
def test_parameters_of_a_half_model(dtype: torch.dtype) -> None:
    """`model.half()`: parameters of x's 16-bit type are widened, not computed with."""
    case = make_case(TYPICAL, dtype)
    x, *parameters = case.tensors
    narrow = [parameter.to(dtype) for parameter in parameters]
    assert torch.equal(fused_aff_mixer(x, *narrow), fused_aff_mixer(x, *(p.float() for p in narrow)))


def test_large_values_do_not_overflow(backend: str) -> None:
    """The masked spectrum is quadratic in x: at x * 100 it leaves float16's range, in float32 it must not."""
    for dtype in (torch.float32, torch.bfloat16):
        x, *parameters = make_inputs(TYPICAL, dtype)
        skip_unsupported(backend, (x, *parameters))
        device = device_of(backend)
        tensors = [(100 * x).to(device), *(p.to(device) for p in parameters)]
        y = fused_aff_mixer(*tensors, backend=backend).cpu()
        expected = reference.mixer(tensors[0].cpu().double(), [t.cpu().double() for t in tensors[1:]], 0.01, "relu")
        assert ((y.double() - expected).norm() / expected.norm()).item() < (1e-6 if dtype == torch.float32 else 4e-3)


def assert_same(backend: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit; but the libraries under the reference take other paths for other layouts."""
    tolerance = 2e-6 if backend == "reference" else 0
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second image": lambda x: torch.stack((x, x + 1), 1).flatten(0, 1)[::2],
    "every second column": lambda x: torch.stack((x, x + 1), -1).flatten(-2)[..., ::2],
    "offset by one element": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "slice of channels": lambda x: torch.cat((x, x + 1), 1)[:, : x.shape[1]],
}


def format_of(layout: str) -> torch.memory_format:
    """That of y and dx."""
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(backend: str, layout: str) -> None:
    case = make_case(TYPICAL)
    skip_unsupported(backend, case.tensors)
    tensors = [tensor.to(device_of(backend)) for tensor in case.tensors]
    expected = fused_aff_mixer(*tensors, backend=backend)
    x = LAYOUTS[layout](tensors[0])
    assert torch.equal(x, tensors[0])
    y = fused_aff_mixer(x, *tensors[1:], backend=backend)
    assert y.is_contiguous(memory_format=format_of(layout))
    assert_same(backend, y, expected)


def test_expanded_input_and_strided_parameters(backend: str) -> None:
    x, *parameters = make_inputs(TYPICAL)
    skip_unsupported(backend, (x, *parameters))
    x, *parameters = (tensor.to(device_of(backend)) for tensor in (x, *parameters))
    expanded = x[:1].expand(3, -1, -1, -1)
    strided = [p.transpose(-1, -2).contiguous().transpose(-1, -2) for p in parameters]
    got = fused_aff_mixer(expanded, *strided, backend=backend)
    assert_same(backend, got, fused_aff_mixer(expanded.contiguous(), *parameters, backend=backend))


def test_infinite_threshold_gives_the_input(backend: str) -> None:
    x, *parameters = make_inputs(TYPICAL)
    skip_unsupported(backend, (x, *parameters))
    tensors = [tensor.to(device_of(backend)) for tensor in (x, *parameters)]
    y = fused_aff_mixer(*tensors, sparsity_threshold=math.inf, backend=backend).cpu()
    assert torch.equal(y, x)


def test_constant_mask_scales_the_input(backend: str) -> None:
    """Without w2 the mask is soft_shrink(b2) everywhere; a real one scales each channel."""
    x, w1, b1, w2, b2 = make_inputs(TYPICAL)
    skip_unsupported(backend, (x, w1))
    b2 = torch.stack((5 * b2[0], torch.zeros_like(b2[1])))
    tensors = [t.to(device_of(backend)) for t in (x, w1, b1, torch.zeros_like(w2), b2)]
    y = fused_aff_mixer(*tensors, sparsity_threshold=0.1, backend=backend).cpu()
    expected = (1 + F.softshrink(b2[0], 0.1)).flatten()[:, None, None] * x
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["odd width", "224 pixels, 14x14", "shipped, D=13", "one channel a block"])
def test_non_finite_values_stay_in_their_block(backend: str, name: str, value: float) -> None:
    shape = SHAPES[name]
    x, *parameters = make_inputs(shape)
    skip_unsupported(backend, (x, *parameters))
    block = 1
    x[1, block * shape.block_size, 0, -1] = value
    y = fused_aff_mixer(*(t.to(device_of(backend)) for t in (x, *parameters)), backend=backend).cpu()
    channels = slice(block * shape.block_size, (block + 1) * shape.block_size)
    assert not y[1, channels].isfinite().any()
    clean = y.clone()
    clean[1, channels] = 0
    assert clean.isfinite().all()
    expected = reference.mixer(x, parameters, 0.01, "relu")
    assert torch.equal(y.isfinite(), expected.isfinite())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_empty_batch(backend: str, dtype: torch.dtype) -> None:
    x, *parameters = make_inputs(TYPICAL, dtype)
    tensors = [t.to(device_of(backend)).requires_grad_() for t in (x[:0], *parameters)]
    skip_unsupported(backend, tuple(tensors))
    y = fused_aff_mixer(*tensors, backend=backend)
    assert y.shape == x[:0].shape
    assert y.dtype == dtype
    for tensor, gradient in zip(tensors, torch.autograd.grad(y.sum(), tensors), strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_the_documented_equivalent() -> None:
    """The docstring's PyTorch, as it stands there."""
    doc = inspect.getdoc(fused_aff_mixer)
    assert doc is not None
    code = textwrap.dedent(doc.split("Equivalent to::\n")[1].split("\nComputed in")[0])
    x, w1, b1, w2, b2 = make_inputs(TYPICAL, torch.float64)
    names = {"torch": torch, "x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2, "softshrink": F.softshrink}
    names |= {"activation": torch.relu, "threshold": 0.01, "K": w1.shape[1], "D": w1.shape[2], "W": x.shape[3]}
    exec(code, names)
    torch.testing.assert_close(names["y"], fused_aff_mixer(x, w1, b1, w2, b2), rtol=1e-12, atol=1e-12)


shapes = st.builds(
    lambda batch, blocks, size, height, width, factor: Shape(batch, blocks * size, height, width, blocks, factor),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 33),
    st.integers(1, 33),
    st.integers(1, 2),
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(shape=shapes, activation=st.sampled_from(list(ACTIVATIONS)), wide=st.booleans())
def test_random_shapes(shape: Shape, activation: str, wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    tensors = make_inputs(shape, dtype)
    y = fused_aff_mixer(*tensors, activation=activation, backend="cpu")
    x, *parameters = (tensor.double() for tensor in tensors)
    branch = reference.mixer(x, parameters, 0.01, activation) - x
    # A branch that soft-shrink leaves nearly empty has no relative error to speak of: x's rounding counts too.
    assert (y.double() - x - branch).norm() <= (1e-12 if wide else 1e-6) * (branch.norm() + x.norm())


def test_guard_bands(backend: str) -> None:
    """Nothing outside the tensors is read into the answer, and nothing outside is written."""
    for name in ("odd both", "224 pixels, 7x7", "224 pixels, 14x14", "shipped, D=13", "primes"):
        tensors = make_inputs(SHAPES[name])
        skip_unsupported(backend, tensors)
        device = device_of(backend)
        expected = fused_aff_mixer(*(t.to(device) for t in tensors), backend=backend)
        buffers = [torch.full((t.numel() + 128,), math.nan, device=device) for t in tensors]
        inside = [b[64:-64].view(t.shape).copy_(t) for b, t in zip(buffers, tensors, strict=True)]
        assert torch.equal(fused_aff_mixer(*inside, backend=backend), expected)
        for buffer, tensor in zip(buffers, tensors, strict=True):
            assert buffer[:64].isnan().all()
            assert buffer[-64:].isnan().all()
            assert torch.equal(buffer[64:-64].view(tensor.shape).cpu(), tensor)


def test_two_threads_at_once(backend: str) -> None:
    cases = [make_case(SHAPES[name]) for name in ("shipped, D=13", "odd both")]
    for case in cases:
        skip_unsupported(backend, case.tensors)
    alone = [call(case, backend, device_of(backend))[0] for case in cases]
    wrong: list[int] = []

    def work(index: int) -> None:
        again = (call(cases[index], backend, device_of(backend))[0] for _ in range(20))
        wrong.extend(index for y in again if not torch.equal(y, alone[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_compiled_backend_runs() -> None:
    """Where the extension should be built, the CPU's automatic choice is it."""
    x, w1, *_ = make_inputs(TYPICAL)
    reasons = available_backends()
    assert not reasons["cpu"], reasons
    assert next(name for name, why in available_backends().items() if not why) == "cpu"
    assert why_not("cpu", (x, w1)) == []


def test_a_zeroed_branch_would_fail() -> None:
    """The bounds have teeth: the residual alone is far outside them."""
    case = make_case(TYPICAL)
    assert branch_error(case.tensors[0], case) > 0.5
