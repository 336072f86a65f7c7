"""Operation counts of the two raw operators, for the counters that people already use.

Counted is what these counters count for the same filter written in eager PyTorch: the products of the block perceptron.
The FFTs, the product with the mask and the activations count nothing there, so they count nothing here. For each of the
H * F stored frequencies of an image, a complex layer takes D * Dh complex products per block, each four real
multiplications:

    forward   8 B H F K D Dh real multiply-adds      both layers
    backward  8 B H F K D Dh                         both layers once more, for the mask is not kept
            + 4 B H F K D Dh                         through the second layer
            + 4 B H F K D Dh                         through the first, where dx is needed
            + 8 B H F K D Dh                         parameter gradients, where they are needed

`torch.utils.flop_counter.FlopCounterMode` counts a multiply-add as two operations and needs nothing but an
`import affnet_kernels`. fvcore counts it as one, and is told what it sees in a trace::

    FlopCountAnalysis(model, x).set_op_handle(**affnet_kernels.flops.FVCORE_HANDLES).total()
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from affnet_kernels import ops as ops  # defines the operators
from affnet_kernels.import_hooks import when_imported

_COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def layer_macs(
    x: Shape,  # [B, C, H, W]
    w1: Shape,  # [2, K, D, Dh]
) -> int:
    """Real multiply-adds of one complex layer of the perceptron."""
    batch, _, height, width = x
    _, blocks, size, hidden = w1
    return 4 * batch * height * (width // 2 + 1) * blocks * size * hidden


def forward_flops(x: Shape, w1: Shape, *args: Any, **kwargs: Any) -> int:
    """Two operations for each multiply-add of `mixer_forward`."""
    return 2 * 2 * layer_macs(x, w1)


def backward_flops(
    dy: Shape,
    x: Shape,
    w1: Shape,
    b1: Shape,
    w2: Shape,
    b2: Shape,
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
    input_grad: bool,
    parameter_grads: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Two operations for each multiply-add of `mixer_backward`."""
    layers = 3 + input_grad + 2 * parameter_grads
    return 2 * layers * layer_macs(x, w1)


def _fvcore_forward(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of a call in a trace, whose first two inputs are x and w1."""
    return forward_flops(*(value.type().sizes() for value in inputs[:2])) // 2


FVCORE_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {"affnet_kernels::mixer_forward": _fvcore_forward}
"""The mixer's handles for `fvcore.nn.FlopCountAnalysis.set_op_handle`."""


def register() -> None:
    """Tell PyTorch's FLOP counter about the operators."""
    registry = importlib.import_module(_COUNTER)
    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.affnet_kernels.mixer_forward: forward_flops,
        torch.ops.affnet_kernels.mixer_backward: backward_flops,
    }
    for operator, formula in formulas.items():
        if operator not in registry.flop_registry:
            registry.register_flop_formula(operator)(formula)


when_imported(_COUNTER, register)  # importing it for that imports Triton, half a second
