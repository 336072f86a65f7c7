"""The backend "triton": eligibility, launch-configuration table, launch."""

from __future__ import annotations

from torch import Tensor

from affnet_kernels.spec import MixerSpec

NAME = "triton"


def unsupported(
    spec: MixerSpec | None,
) -> list[str]:
    return ["the Triton kernels are not written yet"]


def forward(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float,
    activation: str,
) -> Tensor:  # [B, C, H, W]
    raise NotImplementedError


def backward(
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float,
    activation: str,
    input_grad: bool,
    parameter_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    raise NotImplementedError
