"""The backend "triton": which calls it can run, and how it runs them."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from affnet_kernels.backends.triton import device
from affnet_kernels.backends.triton.background import compile_backward
from affnet_kernels.backends.triton.compilation import warm
from affnet_kernels.backends.triton.device import interpreted
from affnet_kernels.backends.triton.launch import backward_plan, forward_plan, passes
from affnet_kernels.backends.triton.launch_table import BACKWARD, FORWARD, MAX_CHANNELS, MAX_SIZE, find_row
from affnet_kernels.backends.triton.tile import partial_sums
from affnet_kernels.spec import Gradients, MixerSpec, Parameters

__all__ = [
    "MAX_CHANNELS",
    "MAX_SIZE",
    "NAME",
    "backward",
    "compile_backward",
    "forward",
    "interpreted",
    "unsupported",
    "warm",
]

NAME = "triton"
MAX_INDEX = 2**31 - 1  # indices within an image, a reduction and a grid are 32-bit
MAX_IMAGE = 2**28  # elements; a tile of several images is indexed with 32 bits too


def unsupported(
    spec: MixerSpec | None,
) -> list[str]:
    """Reasons why the kernels cannot run `spec`, in words; None asks about this machine alone."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed; pip install triton")
    if spec is None:
        if not (interpreted() or torch.cuda.is_available()):
            reasons.append("no CUDA device is available")
        return reasons
    if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"expected float32, float16 or bfloat16, got {str(spec.dtype).removeprefix('torch.')}")
    reasons += _size_reasons(spec)
    if spec.device.type == "cuda":
        reasons += _device_reasons(spec, has_row=not reasons)
    elif not (interpreted() and spec.device.type == "cpu"):
        reasons.append(f"expected a tensor on cuda, got one on {spec.device.type}")
    return reasons


def _size_reasons(spec: MixerSpec) -> list[str]:
    reasons = []
    if max(spec.height, spec.width) > MAX_SIZE:
        reasons.append(f"expected H and W up to {MAX_SIZE}, got {spec.height} x {spec.width}")
    if max(spec.block_size, spec.hidden_size) > MAX_CHANNELS:
        reasons.append(
            f"expected up to {MAX_CHANNELS} channels and hidden channels per block, "
            f"got {spec.block_size} and {spec.hidden_size}"
        )
    if reasons:
        return reasons
    image, sums = spec.channels * spec.height * spec.width, spec.blocks * partial_sums(spec)
    if image > MAX_IMAGE:
        reasons.append(f"expected up to 2**28 elements per image, got {image}")
    if sums > MAX_INDEX:
        reasons.append(f"expected up to 2**31 - 1 sums for the parameters' gradients, got {sums}")
    if spec.batch * spec.blocks > MAX_INDEX:
        reasons.append(f"expected up to 2**31 - 1 blocks in a batch, got {spec.batch * spec.blocks}")
    return reasons


def _device_reasons(
    spec: MixerSpec,
    has_row: bool,  # in the launch tables
) -> list[str]:
    if torch.version.hip is not None:
        return ["expected an NVIDIA device, got an AMD one"]
    try:
        facts = device.facts(spec.device)
    except (AssertionError, RuntimeError) as error:  # PyTorch's, where there is no such device
        return [f"expected a CUDA device that PyTorch can use, got {spec.device}: {error}"]
    major, minor = facts.capability
    if major < 8:
        return [f"expected compute capability 8.0 or more, got {major}.{minor}"]
    if has_row:
        needed = max(find_row(table, spec, major).shared for table in (FORWARD, BACKWARD))
        if needed > facts.shared:
            return [
                f"expected a device with {needed} KiB of shared memory per CTA for these sizes, got {facts.shared} KiB"
            ]
    return []


def forward(
    spec: MixerSpec,
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
) -> Tensor:  # [B, C, H, W]
    """One launch."""
    if (other := device.other_than_current(spec.device)) is not None:
        with other:
            return forward(spec, x, parameters, sparsity_threshold)
    plan = forward_plan(spec, passes(spec, "forward"))
    x, w1, b1, w2, b2 = x.contiguous(), *[parameter.contiguous() for parameter in parameters]
    y = torch.empty_like(x)
    scratch = w1.new_empty(plan.scratch) if plan.scratch else w1
    plan.launch((x, w1, b1, w2, b2, plan.matrices, scratch, y), spec.batch, float(sparsity_threshold))
    return y


def backward(
    spec: MixerSpec,
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
    input_grad: bool,
    parameter_grads: bool,
) -> Gradients:
    """One launch, and where the parameters' gradients are asked for a second one that adds up the partial sums."""
    if (other := device.other_than_current(spec.device)) is not None:
        with other:
            return backward(spec, dy, x, parameters, sparsity_threshold, input_grad, parameter_grads)
    plan = backward_plan(spec, passes(spec, "backward"), input_grad, parameter_grads)
    dy, x, w1, b1, w2, b2 = dy.contiguous(), x.contiguous(), *[parameter.contiguous() for parameter in parameters]
    dx = torch.empty_like(x) if input_grad else x.new_empty(0)
    workspace = w1.new_empty(plan.workspace)  # float32
    plan.launch((dy, x, w1, b1, w2, b2, plan.matrices, workspace, dx), spec.batch, float(sparsity_threshold))
    if plan.reduction is None:
        return dx, w1.new_empty(0), b1.new_empty(0), w2.new_empty(0), b2.new_empty(0)
    empty = torch.empty_like
    gradients = empty(w1), empty(b1), empty(w2), empty(b2)
    plan.reduction((workspace, *gradients), plan.programs_per_block)
    return dx, *gradients
