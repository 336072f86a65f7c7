"""The activations that the mask offers: name, function, derivative, and the PyTorch module that stands for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(NamedTuple):
    """One activation, applied to real and imaginary parts separately."""

    value: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor, Tensor], Tensor]  # (d, v) -> d * value'(v)
    module: type[nn.Module]  # what stands for it in a network built by hand


def _relu_vjp(d: Tensor, v: Tensor) -> Tensor:
    return d * ~(v <= 0)  # a NaN passes its gradient on


def _silu_vjp(d: Tensor, v: Tensor) -> Tensor:
    s = torch.sigmoid(v)
    return d * (s * (1 + v * (1 - s)))


def _gelu_vjp(d: Tensor, v: Tensor) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(v * 0.5**0.5))
    pdf = torch.exp(-0.5 * v * v) * (2 * torch.pi) ** -0.5
    return d * (cdf + v * pdf)


def _tanh_vjp(d: Tensor, v: Tensor) -> Tensor:
    t = torch.tanh(v)
    return d * (1 - t * t)


ACTIVATIONS = {
    "relu": Activation(torch.relu, _relu_vjp, nn.ReLU),
    "silu": Activation(F.silu, _silu_vjp, nn.SiLU),
    "gelu": Activation(F.gelu, _gelu_vjp, nn.GELU),  # the exact, erf form
    "tanh": Activation(torch.tanh, _tanh_vjp, nn.Tanh),
    "identity": Activation(lambda v: v, lambda d, v: d, nn.Identity),
}


def activation_named(name: str) -> Activation:
    """The activation of that name; ValueError for any other."""
    if name not in ACTIVATIONS:
        raise ValueError(f"fused_aff_mixer: expected activation to be one of {list(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
