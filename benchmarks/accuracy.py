"""The error of an answer against float64, and the bounds on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Relative L2 error of y - x in float32. The other mixers sum over thousands of tokens, in whatever order.
FORWARD_BOUND, OTHER_BOUND = 1e-6, 1e-5
# A ReLU or soft-shrink gate within rounding of its kink may flip: about sqrt(2e-7) of a gradient's norm. One that flips
# at a low frequency, where a photograph has its energy, can move a gradient by more. That depends on the input, a wrong
# gradient does not: where the first input exceeds the bound, a second one decides.
GRADIENT_BOUND = 2e-3
# 16-bit: the error of y as a multiple of that of rounding the float64 answer, plus a constant.
ROUNDING_FACTOR, ROUNDING_EXTRA, ROUNDING_EXTRA_OTHER, ROUNDING_EXTRA_GRADIENT = 1.25, 1e-3, 2e-2, 1e-2


def worst_error(
    kind: str,  # of the provider: "mixer", "other" or "copy"
    x: Tensor,  # [B, C, H, W]
    got: tuple[Tensor, ...],  # y, and the gradients if there was a backward pass
    truth: tuple[Tensor, ...],  # the same in float64
) -> tuple[float, float]:
    """The first error that exceeds its bound, or else the largest error; and its bound."""
    mixer = kind == "mixer"
    if kind == "copy":
        worst = distance(got[0], truth[0]), 0.0
    elif x.dtype.itemsize > 2:
        wide = x.double()
        worst = distance(got[0].double() - wide, truth[0] - wide), FORWARD_BOUND if mixer else OTHER_BOUND
    else:
        extra = ROUNDING_EXTRA if mixer else ROUNDING_EXTRA_OTHER
        worst = distance(got[0], truth[0]), _rounded(truth[0], got[0].dtype, extra)
    for gradient, right in zip(got[1:], truth[1:], strict=True):
        bound = GRADIENT_BOUND
        if x.dtype.itemsize == 2:
            bound = _rounded(right, x.dtype, ROUNDING_EXTRA_GRADIENT if mixer else ROUNDING_EXTRA_OTHER)
        candidate = distance(gradient, right), bound
        if not candidate[0] <= bound:
            return candidate
        if worst[0] <= worst[1]:
            worst = max(worst, candidate)
    return worst


def distance(got: Tensor, truth: Tensor) -> float:
    """Relative L2 distance; infinite for anything that is not finite."""
    scale = truth.norm().item()
    difference = (got.double() - truth).norm().item()
    if difference == 0:
        return 0.0
    return difference / scale if math.isfinite(difference) and scale > 0 else math.inf


def _rounded(truth: Tensor, dtype: torch.dtype, extra: float) -> float:
    return ROUNDING_FACTOR * distance(truth.to(dtype), truth) + extra
