"""What a call launches: its kernels with their grids, constants and options, found once and then kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from affnet_kernels.backends.triton import device
from affnet_kernels.backends.triton.launch_table import BACKWARD, FORWARD, Row, find_row
from affnet_kernels.backends.triton.matrices import dft_matrices
from affnet_kernels.backends.triton.tile import Tile, make_tile
from affnet_kernels.spec import MixerSpec

SUM_BLOCK = 256  # elements of a gradient per program of `sum_kernel`
FP_FUSION = {"enable_fp_fusion": True}  # said explicitly, because Triton's default is to change


class Launch:
    """A kernel with its grid, constants and compile options, for one device, which must be the current one.

    Triton binds, classifies and hashes every argument at each launch, which takes 12 to 15 us of host time. Here only
    the first launch goes that way. Later ones hand addresses to the compiled kernel that it returned, in 3 us. Of all
    that Triton classifies, only the alignment of the addresses can differ between the calls of one plan. A call with
    tensors that are not aligned to 16 bytes goes through Triton.
    """

    def __init__(
        self,
        kernel: Any,  # a triton.jit function
        grid: tuple[int, ...],
        constants: tuple[Any, ...],
        options: dict[str, Any],
        device: torch.device,
    ) -> None:
        self._kernel, self._constants, self._options = kernel, constants, options
        self._grid = (*grid, 1, 1)[:3]
        self._device_index = device.index or 0
        self._run_compiled: Callable[..., None] | None = None

    def __call__(
        self,
        tensors: tuple[Tensor, ...],  # the kernel's first arguments
        *scalars: float,  # its next ones
    ) -> None:
        addresses, bits = [tensor.data_ptr() for tensor in tensors], 0
        for address in addresses:
            bits |= address
        if bits & 15:
            self._kernel[self._grid](*tensors, *scalars, *self._constants, **self._options)
        elif self._run_compiled is not None:
            self._run_compiled(*addresses, *scalars, *self._constants)
        else:
            with compilation_lock(self._kernel.__name__, self._constants):
                compiled = self._kernel[self._grid](*tensors, *scalars, *self._constants, **self._options)
            self._run_compiled = compiled_launch(compiled, self._grid, self._device_index)


COMPILATION_LOCKS: dict[tuple[Any, ...], threading.Lock] = {}


def compilation_lock(
    kernel: str,  # its name
    constants: tuple[Any, ...],
) -> threading.Lock:
    """What a thread holds while it compiles the kernel, so that no second one does the same work meanwhile."""
    return COMPILATION_LOCKS.setdefault((kernel, constants), threading.Lock())


def compiled_launch(
    compiled: Any,  # what a launch returned: a compiled kernel, or None in the interpreter
    grid: tuple[int, ...],
    device_index: int,
) -> Callable[..., None] | None:
    """A function that launches `compiled` with all the kernel's arguments; None where Triton offers no such way.

    Triton's own is `compiled[grid]`, which describes each launch for hooks that hardly anybody sets, at 2 us. The
    launcher beneath it has taken the same arguments since Triton 3.6. If a later version's takes others, it raises
    before it launches anything, and Triton's own function is used from then on.
    """
    from triton import knobs
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    if not isinstance(compiled, CompiledKernel):
        return None
    with_hooks = compiled[grid]
    try:
        launcher, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
        runtime, current_stream = knobs.runtime, driver.active.get_current_stream
    except AttributeError:
        return with_hooks
    direct = True

    def launch(*arguments: Any) -> None:
        nonlocal direct
        hooks = getattr(runtime.launch_enter_hook, "calls", True) or getattr(runtime.launch_exit_hook, "calls", True)
        if direct and not hooks:
            try:
                launcher(*grid, current_stream(device_index), function, metadata, None, None, None, *arguments)
                return
            except TypeError:
                direct = False
        with_hooks(*arguments)

    return launch


class ForwardPlan(NamedTuple):
    launch: Launch
    matrices: Tensor
    scratch: int  # floats of scratch memory


class BackwardPlan(NamedTuple):
    launch: Launch
    reduction: Launch | None  # adds up the programs' partial sums, if the parameters' gradients are asked for
    programs_per_block: int
    matrices: Tensor
    workspace: int  # floats of partial sums and scratch memory


@lru_cache(maxsize=1024)
def forward_plan(
    spec: MixerSpec,
    passes: int,
) -> ForwardPlan:
    from affnet_kernels.kernels.mixer import forward_kernel

    facts = device.facts(spec.device)
    row = find_row(FORWARD, spec, facts.capability[0])
    tile = make_tile(row, spec, passes, facts.capability[0])
    tiles = -(-spec.batch // row.images) * spec.blocks
    programs = min(tiles, row.programs * facts.multiprocessors) if tile.STAGED else tiles
    launch = Launch(forward_kernel, (programs,), (tile,), options(row), spec.device)
    scratch = programs * 2 * tile.D * tile.IMAGES * tile.H * tile.F if tile.STAGED else 0
    return ForwardPlan(launch, _matrices(tile, spec.device), scratch)


@lru_cache(maxsize=1024)
def backward_plan(
    spec: MixerSpec,
    passes: int,
    input_grad: bool,
    parameter_grads: bool,
) -> BackwardPlan:
    from affnet_kernels.kernels.mixer import backward_kernel, sum_kernel

    facts = device.facts(spec.device)
    row = find_row(BACKWARD, spec, facts.capability[0])
    tile = make_tile(row, spec, passes, facts.capability[0])
    tiles = -(-spec.batch // row.images)  # of one channel block
    per_block = min(tiles, max(1, row.programs * facts.multiprocessors // spec.blocks))
    programs = per_block * spec.blocks
    launch = Launch(backward_kernel, (programs,), (input_grad, parameter_grads, tile), options(row), spec.device)
    reduction = None
    if parameter_grads:
        elements = 2 * tile.K * (tile.D * tile.DH + max(tile.D, tile.DH))  # of a layer's weight and bias
        grid = (-(-elements // SUM_BLOCK), 2)
        reduction = Launch(sum_kernel, grid, sum_constants(tile), FP_FUSION, spec.device)
    scratch = 4 * tile.D * tile.IMAGES * tile.H * tile.F
    workspace = programs * (scratch + (tile.PARTIAL_SUMS if parameter_grads else 0))
    return BackwardPlan(launch, reduction, per_block, _matrices(tile, spec.device), workspace)


def passes(
    spec: MixerSpec,
    direction: str,  # "forward" or "backward"
) -> int:
    """How products are computed, see `kernels.product`: as float32 unless the user or the output allows less.

    Forward from 16-bit input takes one pass: its error of 3e-4 is below the rounding of y. Gradients take three: those
    of the float32 parameters are not rounded to 16 bits, and one pass would cost them 5e-4 for a quarter of the
    backward's instructions.

    Where PyTorch's own float32 products may use TF32, float32 and gradients take one pass too: an error of up to 1e-3
    instead of 3e-7. Set it by `torch.set_float32_matmul_precision("high")`. After
    `torch.backends.cuda.matmul.fp32_precision = "tf32"` PyTorch's older getters raise, which `torch.compile` reads.
    """
    if direction == "forward" and spec.dtype != torch.float32:
        return 1
    return 1 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 3


def options(
    row: Row,
) -> dict[str, Any]:
    """Triton's compile options; one stage, because the loops hold no products whose operands could be loaded ahead."""
    return {**FP_FUSION, "num_warps": row.warps, "num_stages": 1}


def sum_constants(
    tile: Tile,
) -> tuple[int, ...]:
    """The constants of `sum_kernel`; not the whole tile, so that one compilation serves all image sizes."""
    return tile.K, tile.D, tile.DH, tile.PARTIAL_SUMS, SUM_BLOCK


def _matrices(tile: Tile, device: torch.device) -> Tensor:
    return dft_matrices(tile.H, tile.W, tile.HP, tile.WP, tile.FP, device)
