"""Compiles kernels without launching them: ahead of their first launch, or for a device that is not here."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from affnet_kernels.backends.triton import device
from affnet_kernels.backends.triton.launch import FP_FUSION, options, passes, sum_constants
from affnet_kernels.backends.triton.launch_table import BACKWARD, FORWARD, Row, find_row
from affnet_kernels.backends.triton.tile import Tile, make_tile
from affnet_kernels.spec import MixerSpec

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Triton calls `ast.parse` for every kernel. Python 3.11 counts the depth of all threads' calls as one, and raises
# SystemError where two meet: 30 of 300 calls failed in a program made for that, none on Python 3.10, 3.12 and 3.13.
PARSER_IS_THREAD_SAFE = sys.version_info[:2] != (3, 11)
SCALARS = {"B": ("i32", 2), "programs_per_block": ("i32", 2), "threshold": ("fp32", 0.5)}  # type, and any value


def warm(
    specs: Iterable[MixerSpec],
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> int:
    """Compiles the kernels that training with `specs` launches, and launches none of them.

    Otherwise the first call with a new image size, number of channels or blocks, dtype or activation compiles its
    kernels: about 1.5 s forward and 4 s backward, at every new size of multi-scale training. The batch size does not
    matter. Compiled kernels are kept in Triton's cache on disk (~/.triton/cache, or TRITON_CACHE_DIR), so that later
    processes only load them.

    Args:
        specs: the calls to come, as `MixerSpec.of(x, w1)`, of CUDA tensors that `unsupported` has no objection to.
        progress: called after each kernel with how many are done and how many there are.
        workers: how many kernels to compile at a time; None: one per CPU core.

    Returns:
        The number of kernels.

    Raises:
        RuntimeError: Triton's interpreter is on, or there is no CUDA device.
    """
    if device.interpreted():
        raise RuntimeError("warm: expected Triton's compiler, got its interpreter; unset TRITON_INTERPRET")
    jobs = set()
    for spec in specs:
        try:
            capability = device.facts(spec.device).capability
        except AssertionError as error:  # PyTorch's, where it was built without CUDA
            raise RuntimeError(f"warm: expected a CUDA device, got {spec.device}: {error}") from error
        jobs |= {(job, spec.device) for job in training_jobs(spec, capability)}
    with one_parser_at_a_time(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # LLVM needs no global lock
        futures = [pool.submit(warm_job, *job) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            progress(done, len(jobs))
    return len(jobs)


@contextmanager
def one_parser_at_a_time() -> Iterator[None]:
    """Within it several threads may compile, on Python 3.11 too."""
    if PARSER_IS_THREAD_SAFE:
        yield
        return
    from triton.runtime.jit import JITCallable

    parse, lock = JITCallable.parse, threading.Lock()

    def locked_parse(function: Any) -> Any:
        with lock:
            return parse(function)

    JITCallable.parse = locked_parse
    try:
        yield
    finally:
        JITCallable.parse = parse


def warm_job(
    job: Job,
    on: torch.device,
) -> None:
    """Compiles a kernel for a device that is here, as its first launch with aligned tensors would."""
    with device.other_than_current(on) or nullcontext():
        kernel = job.function()
        arguments = [SCALARS[name][1] if name in SCALARS else job.pointer_dtype(name) for name in job.variables()]
        kernel.warmup(*arguments, *job.constants, grid=(1,), **dict(job.options))


class Job(NamedTuple):
    """A kernel to compile."""

    kernel: str  # its name in `kernels.mixer`
    constants: tuple[Any, ...]  # its last arguments
    options: tuple[tuple[str, Any], ...]  # Triton's compile options
    dtype: torch.dtype  # of x
    capability: tuple[int, int]

    def function(self) -> Any:  # a triton.jit function
        from affnet_kernels.kernels import mixer

        return getattr(mixer, self.kernel)

    def variables(self) -> list[str]:
        """The names of the arguments before the constants."""
        return self.function().arg_names[: -len(self.constants)]

    def pointer_dtype(
        self,
        name: str,  # of an argument
    ) -> torch.dtype:
        if name == "matrices_ptr":
            return torch.float16
        return self.dtype if name in ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr") else torch.float32


def training_jobs(
    spec: MixerSpec,
    capability: tuple[int, int],
) -> Iterator[Job]:
    yield forward_job(spec, capability)
    yield from backward_jobs(spec, capability)


def backward_jobs(
    spec: MixerSpec,
    capability: tuple[int, int],
    input_grad: bool = True,
    parameter_grads: bool = True,
) -> Iterator[Job]:
    if parameter_grads:
        tile = _tile("backward", spec, capability)[1]
        yield Job("sum_kernel", sum_constants(tile), tuple(FP_FUSION.items()), torch.float32, capability)
    yield backward_job(spec, capability, input_grad, parameter_grads)


def forward_job(
    spec: MixerSpec,
    capability: tuple[int, int],
) -> Job:
    row, tile = _tile("forward", spec, capability)
    return Job("forward_kernel", (tile,), tuple(options(row).items()), spec.dtype, capability)


def backward_job(
    spec: MixerSpec,
    capability: tuple[int, int],
    input_grad: bool = True,
    parameter_grads: bool = True,
) -> Job:
    row, tile = _tile("backward", spec, capability)
    constants = (input_grad, parameter_grads, tile)
    return Job("backward_kernel", constants, tuple(options(row).items()), spec.dtype, capability)


def _tile(direction: str, spec: MixerSpec, capability: tuple[int, int]) -> tuple[Row, Tile]:
    row = find_row(FORWARD if direction == "forward" else BACKWARD, spec, capability[0])
    return row, make_tile(row, spec, passes(spec, direction), capability[0])


def compile_job(
    job: Job,
) -> Any:  # Triton's compiled kernel
    """Compiles for the job's compute capability, which need not be that of a device here, and for aligned tensors."""
    import triton

    variables, names = job.variables(), job.function().arg_names
    types = {name: SCALARS[name][0] if name in SCALARS else f"*{TYPES[job.pointer_dtype(name)]}" for name in variables}
    signature = types | dict.fromkeys(names[len(variables) :], "constexpr")
    constants = {(len(variables) + i,): value for i, value in enumerate(job.constants)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(variables) if name not in SCALARS}
    source = triton.compiler.ASTSource(job.function(), signature, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", 10 * job.capability[0] + job.capability[1], 32)
    return triton.compile(source, target=target, options=dict(job.options))
