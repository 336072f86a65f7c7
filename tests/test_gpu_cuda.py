"""Tests of the backend "cuda" that need a device; the tests of all backends run on it too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from affnet_kernels import available_backends, fused_aff_mixer
from affnet_kernels.backends import native, reference
from tests.helpers import (
    THRESHOLD,
    Shape,
    assert_forward,
    assert_gradients,
    call,
    make_case,
    make_inputs,
    relative_error,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(bool(available_backends()["cuda"]), reason="; ".join(available_backends()["cuda"])),
]

ROOT = Path(__file__).parents[1]
LARGE = {
    "48x48": Shape(2, 32, 48, 48, 4),
    "64x64": Shape(2, 32, 64, 64, 4),
    "128x128": Shape(1, 16, 128, 128, 2),
    "90x180": Shape(1, 16, 90, 180, 2),
    "97x101": Shape(1, 16, 97, 101, 2),
    "256x256": Shape(1, 4, 256, 256, 1),
    "1x4096": Shape(2, 16, 1, 4096, 2),
    "4096x1": Shape(2, 16, 4096, 1, 2),
    "D=128": Shape(1, 256, 12, 12, 2),
    "D=256": Shape(1, 256, 12, 12, 1),
}


@pytest.fixture
def extension() -> Iterator[ModuleType]:
    """The extension. Its settings are put back."""
    module = native.EXTENSION
    assert module is not None
    capacity, bound = module.plan_cache_info(0)["capacity"], module.workspace_bound()
    yield module
    module.set_plan_cache_capacity(0, capacity)
    module.set_workspace_bound(bound)
    module.set_tensor_cores(True)


def on_device(shape: Shape, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [tensor.cuda() for tensor in make_inputs(shape, dtype)]


@pytest.mark.parametrize("name", LARGE)
def test_large(name: str) -> None:
    case = make_case(LARGE[name], activation="silu")  # among so many values some are close to any kink
    y, gradients = call(case, "cuda", "cuda", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["64x64", "97x101", "4096x1"])
def test_large_in_other_types(name: str, dtype: torch.dtype) -> None:
    case = make_case(LARGE[name], dtype, "silu")
    y, gradients = call(case, "cuda", "cuda", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)


@pytest.mark.parametrize("tensor_cores", [True, False])
@pytest.mark.parametrize("D", [5, 8, 12, 13, 16, 18, 20, 24, 28, 32, 40])
def test_both_kernels(extension: ModuleType, D: int, tensor_cores: bool) -> None:
    """The map on tensor cores and by plain FMA, with the same bounds."""
    extension.set_tensor_cores(tensor_cores)
    assert extension.map_kernel_name(D, D, False).startswith("tensor cores" if tensor_cores else "FMA")
    case = make_case(Shape(3, 4 * D, 16, 17, 4), activation="silu")
    y, gradients = call(case, "cuda", "cuda", gradients=True)
    assert_forward(y, case)
    assert_gradients(gradients, case)


def test_gradients_repeat_bit_for_bit(extension: ModuleType) -> None:
    """Sums have a fixed order, whatever order the CTAs are scheduled in."""
    case = make_case(Shape(4, 64, 32, 32, 4))
    for tensor_cores in (True, False):
        extension.set_tensor_cores(tensor_cores)
        first = call(case, "cuda", "cuda", gradients=True)[1]
        for _ in range(5):
            for got, expected in zip(call(case, "cuda", "cuda", gradients=True)[1], first, strict=True):
                assert torch.equal(got, expected)


def test_chunks_do_not_change_the_answer(extension: ModuleType) -> None:
    """Up to rounding: cuFFT chooses other kernels for other batches, and partial sums are divided differently."""
    case = make_case(Shape(3, 15, 9, 7, 3))
    whole, gradients = call(case, "cuda", "cuda", gradients=True)
    extension.set_workspace_bound(1)
    in_chunks, others = call(case, "cuda", "cuda", gradients=True)
    torch.testing.assert_close(in_chunks, whole, rtol=1e-6, atol=1e-6)
    assert_gradients(others, case)
    assert_gradients(gradients, case)


def test_plan_cache_over_500_shapes(extension: ModuleType) -> None:
    """Each shape makes two plans, and all but the last ones are dropped."""
    extension.clear_plan_cache(0)
    extension.set_plan_cache_capacity(0, 16)
    before = extension.plan_cache_info(0)
    for i in range(500):
        tensors = on_device(Shape(1, 4, 2 + i % 25, 2 + i // 25, 2))
        fused_aff_mixer(*tensors, backend="cuda")
        info = extension.plan_cache_info(0)
        assert info["size"] <= max(16, info["pinned"])
    made, dropped = (info[name] - before[name] for name in ("misses", "evictions"))
    assert made == 1000
    assert made - dropped == info["size"] - before["size"]


def test_capture_and_replay() -> None:
    """Capture succeeds after one call, and the graph's plans survive clearing the cache."""
    tensors = [tensor.requires_grad_() for tensor in on_device(LARGE["64x64"])]
    dy = torch.randn_like(tensors[0])

    def step() -> tuple[Tensor, ...]:
        y = fused_aff_mixer(*tensors, backend="cuda")
        return y, *torch.autograd.grad(y, tensors, dy)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    native.EXTENSION.clear_plan_cache(0)  # type: ignore[union-attr]
    with torch.no_grad():
        tensors[0].mul_(0.5)
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)


def test_two_streams() -> None:
    """Two threads share the plans, each on a stream of its own."""
    tensors = on_device(LARGE["64x64"])
    expected = fused_aff_mixer(*tensors, backend="cuda")
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            outputs = [fused_aff_mixer(*tensors, backend="cuda") for _ in range(50)]
            torch.cuda.current_stream().synchronize()
        wrong.extend(index for y in outputs if not torch.equal(y, expected))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_synchronisation() -> None:
    tensors = [tensor.requires_grad_() for tensor in on_device(LARGE["64x64"])]
    fused_aff_mixer(*tensors, backend="cuda").sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused_aff_mixer(*tensors, backend="cuda").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_more_elements_than_32_bits_count() -> None:
    batch = 2**31 // (64 * 64 * 64) + 2
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * 2**31:
        pytest.skip("needs 12 GiB of free device memory")
    one, *parameters = on_device(Shape(1, 64, 64, 64, 8), torch.bfloat16)
    x = one.expand(batch, -1, -1, -1).contiguous()
    y = fused_aff_mixer(x, *parameters, backend="cuda")
    alone = fused_aff_mixer(one, *parameters, backend="cuda").double()
    for index in (0, batch // 2, batch - 1):
        assert relative_error(y[index : index + 1], alone.cpu()) < 1e-4


def peak_bytes(backend: str, tensors: list[Tensor]) -> int:
    def step() -> None:
        torch.autograd.grad(fused_aff_mixer(*tensors, backend=backend).sum(), tensors)

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def test_peak_memory() -> None:
    """At most a third of the memory that autograd takes for the formula in eager PyTorch."""
    tensors = [tensor.requires_grad_() for tensor in on_device(Shape(32, 128, 64, 64, 8))]
    ours = peak_bytes("cuda", tensors)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(reference.mixer(tensors[0], tensors[1:], THRESHOLD, "relu").sum(), tensors)
    assert 3 * ours <= torch.cuda.max_memory_allocated() - before


SMALL_CALLS = """
import torch
from affnet_kernels import _C, fused_aff_mixer
from tests.helpers import Shape, make_inputs
for shape in (Shape(2, 24, 5, 9, 4), Shape(1, 36, 8, 8, 2), Shape(2, 16, 13, 1, 2), Shape(1, 10, 9, 7, 2, 3)):
    for tensor_cores in (True, False):
        _C.set_tensor_cores(tensor_cores)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            tensors = [t.cuda().requires_grad_() for t in make_inputs(shape, dtype)]
            fused_aff_mixer(*tensors, backend="cuda").sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "7", "--kernel-regex", "kns=affnet"]
    done = subprocess.run(
        [*command, sys.executable, "-c", SMALL_CALLS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_two_dimensional_plan_on_a_spectrum_that_is_not_hermitian() -> None:
    """Prints what irfft2 does with a spectrum that is not Hermitian; it tests cuFFT, not this package."""
    for height, width in ((8, 8), (7, 7), (32, 32), (64, 64), (90, 180)):
        Y = torch.randn(4, height, width // 2 + 1, dtype=torch.complex128, device="cuda")
        two_steps = torch.fft.irfft(torch.fft.ifft(Y, dim=-2), n=width, dim=-1)
        one_plan = torch.fft.irfft2(Y, s=(height, width))
        print(f"{height}x{width}: irfft2 differs by {relative_error(one_plan, two_steps.cpu()):.1e}")
        assert torch.isfinite(one_plan).all()
