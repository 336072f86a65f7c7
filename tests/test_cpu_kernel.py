"""What only the C++ CPU kernel has: its variants, threads and blocks of memory, and sizes far beyond a network's."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from affnet_kernels import fused_aff_mixer
from affnet_kernels.backends import reference
from affnet_kernels.backends.native import CPU
from affnet_kernels.spec import MixerSpec, Parameters
from tests.helpers import (
    FORWARD_BOUND,
    GRADIENT_BOUND,
    SHAPES,
    THRESHOLD,
    Shape,
    assert_forward,
    assert_gradients,
    call,
    make_case,
    make_inputs,
    relative_error,
    stored_case,
    stored_case_names,
)

pytestmark = pytest.mark.skipif(bool(CPU.unsupported(None)), reason="the extension is not built")

ROOT = Path(__file__).parent.parent
VARIANTS = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}  # ATEN_CPU_CAPABILITY: the kernel's variant
SUPPORTED = {"DEFAULT": 1, "NO AVX": 1, "AVX2": 2, "AVX512": 3}

EVERY_STORED_CASE = """
import torch
from affnet_kernels import _C
from tests.helpers import assert_forward, assert_gradients, call, stored_case, stored_case_names
for name in stored_case_names():
    for dtype in (torch.float32, torch.float64):
        case = stored_case(name)
        y, gradients = call(case, "cpu", dtype=dtype, gradients=True)
        assert_forward(y, case)
        assert_gradients(gradients, case)
print(_C.cpu_capability())
"""


@pytest.mark.parametrize("capability", VARIANTS)
def test_each_variant(capability: str) -> None:
    """Stored cases on every instruction set that this machine has."""
    here = SUPPORTED.get(torch.backends.cpu.get_cpu_capability(), 0)
    if list(VARIANTS).index(capability) >= here:
        pytest.skip(f"this machine has no {capability}, or ATEN_CPU_CAPABILITY forbids it")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", EVERY_STORED_CASE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [VARIANTS[capability]]


def _outputs(tensors: tuple[Tensor, ...], dy: Tensor, activation: str = "relu") -> tuple[Tensor, ...]:
    x, parameters = tensors[0], Parameters(*tensors[1:])
    spec = MixerSpec.of(x, parameters.w1, activation)
    return CPU.forward(spec, x, parameters, THRESHOLD), *CPU.backward(spec, dy, x, parameters, THRESHOLD, True, True)


@pytest.mark.parametrize("shape", [Shape(8, 64, 32, 32, 8), Shape(7, 104, 7, 7, 8), Shape(33, 12, 5, 6, 1)])
def test_same_bits_for_every_number_of_threads(shape: Shape) -> None:
    tensors = make_inputs(shape)
    dy = torch.randn_like(tensors[0])
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            answers.append(_outputs(tensors, dy))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(map(torch.equal, answer, answers[0]))


def test_python_threads_do_not_share_memory() -> None:
    """Calls of different sizes at once, several a thread: scratch memory is kept by each thread and grows."""
    cases = [stored_case(name) for name in stored_case_names()]
    with ThreadPoolExecutor(4) as pool:
        for case, (y, gradients) in zip(
            cases * 8,
            pool.map(lambda case: call(case, "cpu", dtype=torch.float32, gradients=True), cases * 8),
            strict=True,
        ):
            assert_forward(y, case)
            assert_gradients(gradients, case)


LARGE = {
    "tile larger than the first cache": Shape(1, 32, 64, 64, 2),
    "spectrum in several blocks backward": Shape(1, 16, 128, 128, 2),
    "larger than the second cache": Shape(1, 16, 256, 256, 1),
    "one long row": Shape(1, 3, 1, 4096, 1),
    "one long column": Shape(1, 2, 4096, 1, 1),
    "primes by a convolution": Shape(1, 4, 97, 101, 2),
    "a long prime": Shape(2, 2, 3, 1009, 1),
    "a prime of a power of two and one": Shape(1, 2, 257, 257, 1),
    "prime times small factors": Shape(1, 2, 6 * 67, 2 * 31, 1),
    "more images than a tile, not a multiple": Shape(13, 8, 8, 8, 2),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_sizes(name: str, dtype: torch.dtype) -> None:
    """The smooth activation: among so many pre-activations some are always on a kink of ReLU. No shrinkage either."""
    tensors = make_inputs(LARGE[name], dtype)
    dy = torch.randn_like(tensors[0])
    wide = [tensor.double() for tensor in tensors]
    expected_y = reference.mixer(wide[0], wide[1:], 0.0, "silu")
    expected = reference.mixer_vjp(dy.double(), wide[0], wide[1:], 0.0, "silu", True, True)
    x, parameters = tensors[0], Parameters(*tensors[1:])
    spec = MixerSpec.of(x, parameters.w1, "silu")
    y = CPU.forward(spec, x, parameters, 0.0)
    gradients = CPU.backward(spec, dy, x, parameters, 0.0, True, True)
    assert relative_error(y.double() - wide[0], expected_y - wide[0]) <= FORWARD_BOUND[dtype]
    for gradient, answer in zip(gradients, expected, strict=True):
        assert relative_error(gradient, answer) <= GRADIENT_BOUND[dtype]


@pytest.mark.parametrize("size", [*range(1, 49), 53, 56, 59, 61, 64, 67])
def test_every_length(size: int) -> None:
    """Rectangles: a length along the height and along the width, packed for one image and for several."""
    for shape in (Shape(1, 4, size, 6, 2), Shape(1, 4, 5, size, 2), Shape(7, 2, size, size, 1)):
        case = make_case(shape, activation="silu")
        assert_forward(call(case, "cpu")[0], case)


THIN = {
    "a column, channels in the lanes": Shape(2, 26, 64, 1, 2),
    "a row, channels in the lanes": Shape(2, 26, 1, 64, 2),
    "a column of one channel": Shape(1, 3, 1024, 1, 3),
    "a row of one channel": Shape(1, 3, 1, 1024, 3),
    "an odd number of signals": Shape(1, 5, 1, 777, 1),
    "a prime column": Shape(1, 16, 509, 1, 2),
    "a prime row": Shape(1, 16, 1, 509, 2),
    "a short prime column": Shape(1, 16, 61, 1, 2),
    "a short prime row": Shape(1, 16, 1, 61, 2),
    "two rows": Shape(1, 6, 2, 640, 2),
    "three rows": Shape(1, 6, 3, 259, 1),
    "three short rows": Shape(3, 10, 3, 11, 2),
    "two columns": Shape(1, 6, 640, 2, 2),
    "three columns of one channel": Shape(1, 2, 1021, 3, 2),
    "more channels than are transformed together": Shape(1, 70, 1, 20, 1),
    "more images than a tile": Shape(11, 6, 1, 30, 2),
}


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_thin_maps(name: str, dtype: torch.dtype) -> None:
    """Maps of so few rows or columns that several channels, or the parts of one signal, share a vector."""
    case = make_case(THIN[name], dtype, "silu")
    y, gradients = call(case, "cpu", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("parameter_grads", [True, False])
def test_gradients_left_out(input_grad: bool, parameter_grads: bool) -> None:
    case = stored_case("et_stage4_16x16")
    x, parameters = case.tensors[0], Parameters(*case.tensors[1:])
    spec = MixerSpec.of(x, parameters.w1, case.activation)
    every = CPU.backward(spec, case.dy, x, parameters, case.sparsity_threshold, True, True)
    some = CPU.backward(spec, case.dy, x, parameters, case.sparsity_threshold, input_grad, parameter_grads)
    for asked, gradient, full in zip((input_grad, *4 * (parameter_grads,)), some, every, strict=True):
        if asked:
            assert torch.equal(gradient, full)
        else:
            assert gradient.shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (16, 16), (1, 21), (21, 1)])
def test_images_of_a_tile_do_not_spoil_each_other(height: int, width: int, bad: float) -> None:
    """Several small images, and channels of a thin map, share transforms; none may be affected by a bad one."""
    tensors = list(make_inputs(Shape(8, 16, height, width, 2)))
    dy = torch.randn_like(tensors[0])
    clean = _outputs(tuple(tensors), dy)
    tensors[0][3, 5].view(-1)[height + width - 2] = bad
    y, dx, *gradients = _outputs(tuple(tensors), dy)
    for got, expected in ((y, clean[0]), (dx, clean[1])):
        assert not got[3, :8].isfinite().any()
        spared = torch.ones(8, 16, dtype=torch.bool)
        spared[3, :8] = False
        torch.testing.assert_close(got[spared], expected[spared], rtol=1e-5, atol=1e-5)
    wide = [tensor.double() for tensor in tensors]
    truth = reference.mixer_vjp(dy.double(), wide[0], wide[1:], THRESHOLD, "relu", True, True)[1:]
    for gradient, expected, answer in zip(gradients, clean[2:], truth, strict=True):
        assert torch.equal(gradient.isfinite(), answer.isfinite())
        assert not gradient[:, 0].isfinite().all()
        torch.testing.assert_close(gradient[:, 1], expected[:, 1], rtol=1e-4, atol=1e-4)


UNLIKE = {
    "8x8": Shape(8, 64, 8, 8, 8),
    "7x7": Shape(8, 32, 7, 7, 4),
    "14x14": Shape(8, 16, 14, 14, 2),
    "16x16": Shape(8, 16, 16, 16, 2),
    "32x32": Shape(5, 16, 32, 32, 2),
    "a row": Shape(8, 26, 1, 61, 2),
    "a column": Shape(8, 26, 64, 1, 2),
    "two columns": Shape(4, 6, 640, 2, 2),
    "one long row": Shape(4, 6, 1, 1024, 2),
    "one long column": Shape(4, 6, 1024, 2, 2),
}
SCALES = (1.0, 1e4, 1e-4, 1e8)


def _scaled(tensor: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Image i of `tensor` times scales[i], and the scales over again for the images that are left."""
    factors = torch.tensor([scales[i % len(scales)] for i in range(len(tensor))], dtype=tensor.dtype)
    return tensor * factors.view(-1, 1, 1, 1)


def _linear_outputs(dy: Tensor, tensors: tuple[Tensor, ...], threshold: float = 0.0) -> tuple[Tensor, ...]:
    """y and the gradients with the identity as activation: at a scale of 1e8 even SiLU has a kink, as sharp as ReLU."""
    x, parameters = tensors[0], Parameters(*tensors[1:])
    spec = MixerSpec.of(x, parameters.w1, "identity")
    return CPU.forward(spec, x, parameters, threshold), *CPU.backward(spec, dy, x, parameters, threshold, True, True)


def _linear_truth(dy: Tensor, tensors: tuple[Tensor, ...], threshold: float = 0.0) -> tuple[Tensor, ...]:
    x, *parameters = (tensor.double() for tensor in tensors)
    y = reference.mixer(x, parameters, threshold, "identity")
    return y, *reference.mixer_vjp(dy.double(), x, parameters, threshold, "identity", True, True)


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x_scales", "dy_scales"),
    [(SCALES, (1.0,)), ((1.0,), SCALES), (SCALES, (1.0, 1e-4, 1e4, 1e-8)), ((1.0, 25.0), (25.0, 1.0))],
    ids=["x", "dy", "x against dy", "dx alone"],
)
def test_images_of_unlike_magnitude(
    name: str, dtype: torch.dtype, x_scales: tuple[float, ...], dy_scales: tuple[float, ...]
) -> None:
    """Each image is as accurate beside images of any magnitude as alone, and so are the parameters' gradients."""
    tensors = make_inputs(UNLIKE[name], dtype)
    x, dy = _scaled(tensors[0], x_scales), _scaled(torch.randn_like(tensors[0]), dy_scales)
    tensors = (x, *tensors[1:])
    (y, dx, *gradients), (y_truth, dx_truth, *truth) = _linear_outputs(dy, tensors), _linear_truth(dy, tensors)
    for image in range(len(x)):
        wide = x[image].double()
        assert relative_error(y[image].double() - wide, y_truth[image] - wide) <= FORWARD_BOUND[dtype]
        assert relative_error(dx[image], dx_truth[image]) <= GRADIENT_BOUND[dtype]
    for gradient, answer in zip(gradients, truth, strict=True):
        assert relative_error(gradient, answer) <= GRADIENT_BOUND[dtype]


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("scale", [2.0, 5.0, 6.0, 30.0, 40.0])
def test_images_hardly_alike(name: str, scale: float) -> None:
    """Around the ratio from which images are computed alone, the smaller one's branch keeps five digits."""
    tensors = make_inputs(UNLIKE[name])
    x, dy = _scaled(tensors[0], (1.0, scale, scale, 1.0)), _scaled(torch.randn_like(tensors[0]), (scale, 1.0))
    tensors = (x, *tensors[1:])
    (y, dx, *_), (y_truth, dx_truth, *_) = _linear_outputs(dy, tensors), _linear_truth(dy, tensors)
    for image in range(len(x)):
        wide = x[image].double()
        assert relative_error(y[image].double() - wide, y_truth[image] - wide) <= 1e-5
        assert relative_error(dx[image], dx_truth[image]) <= 1e-5


@pytest.mark.parametrize(("height", "width"), [(3, 3), (7, 7), (1, 21)])
def test_only_unlike_images_are_computed_alone(height: int, width: int) -> None:
    """Alone, an image has the same bits as in a batch of one; where images share transforms, it has others."""
    tensors = make_inputs(Shape(8, 8, height, width, 8))
    dy = torch.randn_like(tensors[0])
    for scales, alone in (((1.0,), False), ((1.0, 1e4), True), ((0.0, 1.0), True)):
        x = _scaled(tensors[0], scales)
        batch = _linear_outputs(dy, (x, *tensors[1:]))[:2]
        single = [_linear_outputs(dy[i : i + 1], (x[i : i + 1], *tensors[1:]))[:2] for i in range(len(x))]
        for got, each in zip(batch, zip(*single, strict=True), strict=True):
            assert torch.equal(got, torch.cat(each)) == alone


def _last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [*SHAPES, *UNLIKE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_channels_last(name: str, dtype: torch.dtype) -> None:
    """The same from maps in either format: bit for bit, but for 16-bit types, whose sums are in another order.

    The images of a batch are of unlike magnitude, so that tiles are computed a second time, from x and dy as they were.
    """
    torch.manual_seed(0)
    tensors = make_inputs(SHAPES.get(name) or UNLIKE[name], dtype)
    scales = SCALES if dtype.itemsize > 2 else (1.0, 1e-2)
    for x, dy in (
        (tensors[0], torch.randn_like(tensors[0])),
        (_scaled(tensors[0], scales), _scaled(torch.randn_like(tensors[0]), scales[::-1])),
    ):
        expected = _outputs((x, *tensors[1:]), dy)
        for got in (_outputs((_last(x), *tensors[1:]), _last(dy)), _outputs((_last(x), *tensors[1:]), dy)):
            for output in got[:2]:
                assert output.is_contiguous() or output.is_contiguous(memory_format=torch.channels_last)
                assert output.is_contiguous() == _last(x).is_contiguous()  # a map of one pixel is both
            for a, b in zip(got, expected, strict=True):
                if dtype.itemsize > 2:
                    assert torch.equal(a, b)
                else:
                    assert relative_error(a, b.double()) <= 1e-3  # less than a rounding: few elements go the other way


@pytest.mark.parametrize("name", UNLIKE)
def test_zero_images(name: str) -> None:
    """Below the threshold the branch of a zero image is exactly zero, and so are its gradient's and that of no dy."""
    tensors = make_inputs(UNLIKE[name])
    x, dy = _scaled(tensors[0], (1.0, 0.0, 1e4)), _scaled(torch.randn_like(tensors[0]), (1.0, 1.0, 0.0))
    tensors = (x, *tensors[1:])
    y, dx, *gradients = _linear_outputs(dy, tensors, threshold=1.0)
    truth = _linear_truth(dy, tensors, threshold=1.0)[2:]
    assert torch.equal(y[1::3], x[1::3])
    assert torch.equal(dx[1::3], dy[1::3])
    assert torch.equal(dx[2::3], dy[2::3])
    for gradient, answer in zip(gradients, truth, strict=True):
        assert relative_error(gradient, answer) <= GRADIENT_BOUND[torch.float32]
    assert torch.equal(_linear_outputs(dy, tensors, threshold=float("inf"))[0], x)


@pytest.mark.parametrize(
    "name", ["a short prime row", "a short prime column", "more channels than are transformed together"]
)
def test_channels_of_unlike_magnitude(name: str) -> None:
    """Channels of a thin map, which share transforms: each keeps five digits of its own."""
    tensors = make_inputs(THIN[name])
    x, dy = tensors[0], torch.randn_like(tensors[0])
    x[:, 0] *= 1e5
    (y, *_), (truth, *_) = _linear_outputs(dy, tensors), _linear_truth(dy, tensors)
    for channel in range(x.shape[1]):
        wide = x[:, channel].double()
        error = relative_error(y[:, channel].double() - wide, truth[:, channel] - wide)
        assert error <= 1e-5


def _guarded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of `tensor`, with its strides, between bands of NaN, and the memory of all three."""
    band = 256
    memory = torch.full((tensor.numel() + 2 * band,), float("nan"), dtype=tensor.dtype)
    inner = memory.as_strided(tensor.shape, tensor.stride(), band)
    return inner.copy_(tensor), memory


@pytest.mark.parametrize(
    "shape",
    [
        Shape(3, 6, 7, 7, 2),
        Shape(5, 4, 14, 14, 1),
        Shape(1, 6, 9, 33, 3),
        Shape(3, 6, 1, 21, 2),
        Shape(1, 6, 300, 1, 3),
        Shape(1, 6, 300, 2, 3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_reads_nothing_around_its_inputs(shape: Shape, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """NaN around every input reaches no output, and is not written to."""
    x, *parameters = make_inputs(shape, dtype)
    tensors = x.contiguous(memory_format=memory_format), *parameters
    dy = torch.randn_like(tensors[0])
    guarded = [_guarded(tensor) for tensor in (dy, *tensors)]
    inputs = [inner for inner, _ in guarded]
    got = _outputs(tuple(inputs[1:]), inputs[0])
    assert all(map(torch.equal, got, _outputs(tensors, dy)))
    for (_, memory), tensor in zip(guarded, (dy, *tensors), strict=True):
        assert memory[:256].isnan().all()
        assert memory[-256:].isnan().all()
        assert torch.equal(memory.as_strided(tensor.shape, tensor.stride(), 256), tensor)


def _peak_bytes(function: object, *tensors: Tensor) -> int:
    """Most memory that a forward and backward holds at once beyond what was there before."""
    dy = torch.ones_like(tensors[0])
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        y = function(*tensors)  # type: ignore[operator]
        torch.autograd.grad(y, tensors, dy)
        del y
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_memory_of_forward_and_backward() -> None:
    tensors = tuple(tensor.requires_grad_() for tensor in make_inputs(Shape(8, 128, 32, 32, 8)))

    def fused(*args: Tensor) -> Tensor:
        return fused_aff_mixer(*args, backend="cpu")

    def eager(*args: Tensor) -> Tensor:
        return reference.mixer(args[0], args[1:], THRESHOLD, "relu")

    assert _peak_bytes(fused, *tensors) <= _peak_bytes(eager, *tensors) / 6
