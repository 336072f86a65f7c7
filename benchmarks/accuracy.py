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
# Of a network's logits: an untrained network amplifies rounding from layer to layer, to 9e-6 in eager PyTorch. In
# training BatchNorm, over two images, amplifies it further: to 2e-5, and in the channels-last format to 5e-5. Gradients
# are judged together: those of a bias before BatchNorm, for instance, are zero but for rounding. Gates that flip move
# them: by 3.5e-4 in eager PyTorch, by 2e-3 in the channels-last format, by 1.4e-3 under torch.compile.
NETWORK_BOUND, NETWORK_TRAINING_BOUND, NETWORK_GRADIENT_BOUND = 3e-5, 2e-4, 5e-3
# Under autocast, as a multiple of the error of its definition under autocast, which reaches 0.4.
AUTOCAST_FACTOR = 1.5
# 16-bit: the error of y as a multiple of that of rounding the float64 answer, plus a constant.
ROUNDING_FACTOR, ROUNDING_EXTRA, ROUNDING_EXTRA_OTHER, ROUNDING_EXTRA_GRADIENT = 1.25, 1e-3, 2e-2, 1e-2


def worst_error(
    kind: str,  # of the provider: "mixer", "other", "copy" or "network"
    x: Tensor,  # [B, C, H, W]
    got: tuple[Tensor, ...],  # y, and the gradients if there was a backward pass
    truth: tuple[Tensor, ...],  # the same in float64
    usual: tuple[Tensor, ...] = (),  # the same by a network's definition under autocast, where the case asks for that
) -> tuple[float, float]:
    """The first error that exceeds its bound, or else the largest error; and its bound."""
    if kind == "network":
        return _network_error(got, truth, usual)
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


def _network_error(
    got: tuple[Tensor, ...], truth: tuple[Tensor, ...], usual: tuple[Tensor, ...]
) -> tuple[float, float]:
    got, truth, usual = (_joined(answer) for answer in (got, truth, usual))
    bounds = (NETWORK_BOUND,) if len(truth) == 1 else (NETWORK_TRAINING_BOUND, NETWORK_GRADIENT_BOUND)
    if usual:
        bounds = tuple(AUTOCAST_FACTOR * distance(*pair) for pair in zip(usual, truth, strict=True))
    errors = [(distance(*pair), bound) for *pair, bound in zip(got, truth, bounds, strict=False)]
    return next((found for found in errors if not found[0] <= found[1]), max(errors))


def _joined(answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The logits, and all gradients as one vector if there are any."""
    return (*answer[:1], torch.cat([t.flatten() for t in answer[1:]])) if len(answer) > 1 else answer


def distance(got: Tensor, truth: Tensor) -> float:
    """Relative L2 distance; infinite for anything that is not finite."""
    scale = truth.norm().item()
    difference = (got.double() - truth).norm().item()
    if difference == 0:
        return 0.0
    return difference / scale if math.isfinite(difference) and scale > 0 else math.inf


def _rounded(truth: Tensor, dtype: torch.dtype, extra: float) -> float:
    return ROUNDING_FACTOR * distance(truth.to(dtype), truth) + extra
