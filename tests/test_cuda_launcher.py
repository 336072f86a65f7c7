"""The CUDA launcher from the Python call to its last launch, on a runtime without a device.

tests/cuda_host/runtime.cpp takes the place of the CUDA runtime and cuFFT, so this needs CUDA builds of PyTorch and of
the extension but no GPU; tests/cuda_build.sh runs it. Run as a script it prints the launcher's time on the host.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from affnet_kernels import MixerSpec, fused_aff_mixer
from affnet_kernels.backends import native
from tests.helpers import (
    GRADIENT_BOUND,
    PARAMETERS,
    SHAPES,
    THRESHOLD,
    Shape,
    assert_forward,
    assert_gradients,
    assert_rounded,
    call,
    leaf,
    make_case,
    make_inputs,
    relative_error,
)

RUNTIME = ctypes.CDLL(None)
COUNTS = ("launches", "skipped", "transforms", "attributes", "capture_queries", "fft_plans")
CLEAN = "races=0 uninitialised=0 out_of_bounds=0 misaligned=0 stuck=0"
SMALL = [
    name
    for name, shape in SHAPES.items()
    if shape.batch * shape.channels * shape.height * shape.width * max(shape.height, shape.width) < 2**19
]

pytestmark = pytest.mark.skipif(
    not hasattr(RUNTIME, "affnet_findings"), reason="needs the runtime without a device; see tests/cuda_build.sh"
)


@pytest.fixture(autouse=True)
def extension() -> Iterator[ModuleType]:
    """The extension. Its settings are put back, and the emulator must have found nothing."""
    module = native.EXTENSION
    assert module is not None
    bound = module.workspace_bound()
    yield module
    module.set_workspace_bound(bound)
    module.set_tensor_cores(True)
    module.set_one_launch(True)
    RUNTIME.affnet_findings.restype = ctypes.c_char_p
    assert RUNTIME.affnet_findings().decode().startswith(CLEAN)


def counts() -> dict[str, int]:
    RUNTIME.affnet_count.restype = ctypes.c_int64
    return {name: RUNTIME.affnet_count(i) for i, name in enumerate(COUNTS)}


def counted(function: Callable[[], object]) -> dict[str, int]:
    before = counts()
    function()
    return {name: count - before[name] for name, count in counts().items()}


def assert_right(shape: Shape, dtype: torch.dtype = torch.float32) -> None:
    case = make_case(shape, dtype)
    y, gradients = call(case, "cuda", "cuda", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)


def path(shape: Shape, dtype: torch.dtype = torch.float32, backward: bool = False) -> str:
    """Which way the launcher should take on the device that the runtime claims to have."""
    x, w1, *_ = make_inputs(shape, dtype)
    return native.CUDA.path(MixerSpec.of(x.cuda(), w1.cuda()), backward).name


ONE_LAUNCH = ("224 pixels, 7x7", "shipped, D=18", "shipped, D=40", "320 pixels, 10x10", "a wide one")
MORE_SHAPES = {"a wide one": Shape(2, 24, 8, 16, 2)}


@pytest.mark.parametrize("name", SMALL)
def test_shape(name: str) -> None:
    assert_right(SHAPES[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ONE_LAUNCH)
def test_one_launch(name: str, dtype: torch.dtype) -> None:
    """A forward pass is one kernel: no cuFFT plan is made and no transform runs, not even at the first call."""
    shape = (SHAPES | MORE_SHAPES)[name]
    assert path(shape, dtype) == "one-launch"
    native.EXTENSION.clear_plan_cache()  # type: ignore[union-attr]
    case = make_case(shape, dtype)
    tensors = [tensor.cuda() for tensor in case.tensors]
    torch.use_deterministic_algorithms(False)  # else PyTorch fills new tensors, by kernels of its own
    answers = []
    with torch.no_grad():
        first = counted(lambda: answers.append(fused_aff_mixer(*tensors, backend="cuda")))
        again = counted(lambda: answers.append(fused_aff_mixer(*tensors, backend="cuda")))
    for y in answers:
        assert_forward(y, case)
    assert first | {"attributes": 0} == again
    assert first["attributes"] <= 1
    assert again == dict.fromkeys(COUNTS, 0) | {"launches": 1}


@pytest.mark.parametrize("name", ["shipped, D=18", "224 pixels, 7x7", "a wide one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("input_grad", "parameter_grads"), [(True, True), (True, False), (False, True)])
def test_one_launch_backward(
    extension: ModuleType, name: str, dtype: torch.dtype, input_grad: bool, parameter_grads: bool
) -> None:
    """A backward pass is one kernel, and one that adds the partial sums of the parameters' gradients."""
    shape = (SHAPES | MORE_SHAPES)[name]
    assert path(shape, dtype, backward=True) == "one-launch"
    extension.clear_plan_cache()
    case = make_case(shape, dtype)
    tensors = [tensor.cuda() for tensor in case.tensors]
    dy = case.dy.cuda()
    torch.use_deterministic_algorithms(False)
    answers = []

    def backward() -> None:
        answers.append(extension.native_backward(dy, *tensors, THRESHOLD, "relu", input_grad, parameter_grads))

    backward()
    assert counted(backward) == dict.fromkeys(COUNTS, 0) | {"launches": 1 + parameter_grads}
    for gradients in answers:
        for wanted, got, expected in zip(
            (input_grad, *(4 * (parameter_grads,))), gradients, case.gradients, strict=True
        ):
            if not wanted:
                assert got.shape == (0,)
            elif got.dtype == torch.float32:
                assert relative_error(got, expected) <= GRADIENT_BOUND[torch.float32]
            else:
                assert_rounded(got.cpu(), expected)
        assert [got.dtype for got in gradients] == [dtype, *(4 * [torch.float32])]


@pytest.mark.parametrize("name", ["shipped, D=18", "224 pixels, 7x7"])
def test_one_launch_can_be_switched_off(extension: ModuleType, name: str) -> None:
    extension.set_one_launch(False)
    assert path(SHAPES[name]) == "planned"
    tensors = [tensor.cuda() for tensor in make_inputs(SHAPES[name])]
    with torch.no_grad():
        assert counted(lambda: fused_aff_mixer(*tensors, backend="cuda"))["transforms"] == 2
    assert_right(SHAPES[name])


@pytest.mark.parametrize(
    ("layout", "copies"), [("contiguous", 0), ("misaligned", 0), ("every second row", 1), ("channels-last", 2)]
)
def test_one_launch_of_any_layout(layout: str, copies: int) -> None:
    """Copies that make x contiguous and give y its format are PyTorch's kernels, which this runtime skips."""
    shape = SHAPES["shipped, D=18"]
    case = make_case(shape)
    x, *parameters = (tensor.cuda() for tensor in case.tensors)
    like = {
        "contiguous": x,
        "misaligned": torch.cat([case.tensors[0].new_zeros(1), case.tensors[0].flatten()]).cuda()[1:].view(x.shape),
        "every second row": torch.as_strided(x, x.shape, (x.stride(0), x.stride(1), 4, 1)),
        "channels-last": torch.as_strided(x, x.shape, (x.stride(0), 1, 8 * 144, 144)),
    }[layout]
    torch.use_deterministic_algorithms(False)  # else PyTorch fills new tensors, by kernels of its own
    answers = []
    with torch.no_grad():
        found = counted(lambda: answers.append(fused_aff_mixer(like, *parameters, backend="cuda")))
    assert found == dict.fromkeys(COUNTS, 0) | {"launches": 1 + copies, "skipped": copies}
    assert answers[0].stride() == (like.stride() if layout == "channels-last" else x.stride())
    if copies == 0:
        assert_forward(answers[0], case)


def test_an_empty_batch_is_no_launch() -> None:
    tensors = [tensor.cuda() for tensor in make_inputs(SHAPES["shipped, D=18"])]
    tensors[0] = tensors[0][:0]
    with torch.no_grad():
        assert counted(lambda: fused_aff_mixer(*tensors, backend="cuda")) == dict.fromkeys(COUNTS, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["odd both", "a column", "a row", "hidden twice the block"])
def test_dtype(name: str, dtype: torch.dtype) -> None:
    assert_right(SHAPES[name], dtype)


@pytest.mark.parametrize("name", ["odd width", "shipped, D=18"])
def test_plain_fma(extension: ModuleType, name: str) -> None:
    extension.set_tensor_cores(False)
    assert_right(SHAPES[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_images", [1, 3])
def test_chunks(extension: ModuleType, block_images: int, dtype: torch.dtype) -> None:
    """Chunks that end within an image, a smaller last one, and planes of odd size, where every second is misaligned."""
    shape = Shape(2, 15, 3, 7, 5)
    spectrum = shape.block_size * shape.height * (shape.width // 2 + 1) * 8
    extension.set_workspace_bound(2 * block_images * spectrum + block_images * 4 * 3 * 3 * 7)
    assert_right(shape, dtype)


def test_a_misaligned_tensor() -> None:
    case = make_case(SHAPES["odd width"])
    x, *parameters = case.tensors
    storage = torch.cat([x.new_zeros(1), x.flatten()]).cuda()
    y = fused_aff_mixer(storage[1:].view(x.shape), *(p.cuda() for p in parameters), backend="cuda")
    assert_forward(y, case)


def test_groups_of_gradients() -> None:
    case = make_case(SHAPES["odd both"])
    for wanted in itertools.product((False, True), repeat=2):
        tensors = [
            leaf(t.cuda(), wanted[name != "x"]) for name, t in zip(("x", *PARAMETERS), case.tensors, strict=True)
        ]
        if not any(wanted):
            continue
        y = fused_aff_mixer(*tensors, backend="cuda")
        needed = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        found = torch.autograd.grad(y, [tensors[i] for i in needed], case.dy.cuda())
        for i, gradient in zip(needed, found, strict=True):
            torch.testing.assert_close(gradient.cpu().double(), case.gradients[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches(dtype: torch.dtype) -> None:
    """Of a call that is one chunk: nothing but its transforms and kernels, and one question about graph capture."""
    torch.use_deterministic_algorithms(False)  # else PyTorch fills new tensors, by kernels of its own
    forward, backward = calls(Shape(2, 256, 4, 4, 8), dtype)
    forward(), backward()
    conversions = 0 if dtype == torch.float32 else 1
    with torch.no_grad():
        assert counted(forward) == {
            "launches": 2 + conversions,
            "skipped": 0,
            "transforms": 2,
            "attributes": 0,
            "capture_queries": 1,
            "fft_plans": 0,
        }
        assert counted(backward) == {
            "launches": 3 + 2 * conversions,
            "skipped": 0,
            "transforms": 3,
            "attributes": 0,
            "capture_queries": 1,
            "fft_plans": 0,
        }


def calls(shape: Shape, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """The extension's forward and backward, without autograd and the public checks."""
    tensors = [tensor.cuda() for tensor in make_inputs(shape, dtype)]
    module = native.EXTENSION
    assert module is not None
    return (
        lambda: module.native_forward(*tensors, 0.01, "relu"),
        lambda: module.native_backward(tensors[0], *tensors, 0.01, "relu", True, True),
    )


def microseconds(function: Callable[[], object], count: int = 100, rounds: int = 300) -> float:
    """The least mean over many short rounds: on a busy machine the others measure other programs."""
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            function()
        least = min(least, time.perf_counter() - start)
    return least / count * 1e6


def main() -> None:
    RUNTIME.affnet_run_kernels(ctypes.c_bool(False))
    print("host time of the extension, with launches and transforms that cost nothing")
    for shape, dtype in itertools.product(
        (Shape(1, 320, 8, 8, 8), Shape(8, 256, 16, 16, 8)), (torch.float32, torch.half)
    ):
        forward, backward = calls(shape, dtype)
        print(f"{shape} {dtype}: forward {microseconds(forward):.1f} us, backward {microseconds(backward):.1f} us")


if __name__ == "__main__":
    main()
