"""Compiles kernels ahead of their first launch, into Triton's cache on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import torch

from affnet_kernels.backends.triton import device
from affnet_kernels.backends.triton.launch import FP_FUSION, options, passes, sum_constants
from affnet_kernels.backends.triton.launch_table import BACKWARD, FORWARD, Row, find_row
from affnet_kernels.backends.triton.tile import Tile, make_tile
from affnet_kernels.spec import MixerSpec

POINTER_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def warm(
    specs: Iterable[MixerSpec],
    progress: Callable[[int, int], None] = lambda done, total: None,
    capability: tuple[int, int] | None = None,
    workers: int | None = None,
) -> int:
    """Compiles the kernels that training with `specs` launches, and launches none of them.

    The first call of a size otherwise stops to compile: some 1.5 s forward and 4 s backward. Batch sizes do not matter.
    Gradients are compiled as a training step needs them, of x and of the parameters.

    Args:
        specs: the calls to come, as `MixerSpec.of(x, w1)`; they must be calls that the kernels support.
        progress: is called with the numbers of kernels that are done and of all kernels, after each.
        capability: compute capability to compile for, such as (9, 0); None: that of each spec's device.
        workers: kernels that are compiled at a time; None: one per CPU core.

    Returns:
        The number of kernels.
    """
    if device.interpreted():
        raise RuntimeError("warm: expected Triton's compiler, got its interpreter; unset TRITON_INTERPRET")
    jobs = {job for spec in specs for job in training_jobs(spec, capability or device.facts(spec.device).capability)}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # the compiler releases Python's global lock
        futures = [pool.submit(compile_job, job) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            progress(done, len(jobs))
    return len(jobs)


class Job(NamedTuple):
    """A kernel to compile."""

    kernel: str  # its name in `kernels.mixer`
    constants: tuple[Any, ...]  # its last arguments
    options: tuple[tuple[str, Any], ...]  # Triton's compile options
    dtype: torch.dtype  # of x
    capability: tuple[int, int]


def training_jobs(
    spec: MixerSpec,
    capability: tuple[int, int],
) -> Iterator[Job]:
    yield forward_job(spec, capability)
    yield backward_job(spec, capability)
    tile = _tile("backward", spec, capability)[1]
    yield Job("sum_kernel", sum_constants(tile), tuple(FP_FUSION.items()), torch.float32, capability)


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
    """What Triton compiles at the first launch with aligned tensors: its cache on disk takes the one for the other."""
    import triton

    from affnet_kernels.kernels import mixer

    kernel = getattr(mixer, job.kernel)
    names = kernel.arg_names
    constants = dict(zip(names[-len(job.constants) :], job.constants, strict=True))
    types = dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), POINTER_TYPES[job.dtype])
    types |= {"matrices_ptr": "*fp16", "B": "i32", "programs_per_block": "i32", "threshold": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(signature.values()) if type_.startswith("*")}
    source = triton.compiler.ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    target = triton.backends.compiler.GPUTarget("cuda", 10 * job.capability[0] + job.capability[1], 32)
    return triton.compile(source, target=target, options=dict(job.options))
