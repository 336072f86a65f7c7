"""What a mixer call consists of: its parameters, and the facts that are known before it runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def compute_dtype(
    dtype: torch.dtype,
) -> torch.dtype:
    """The type the mixer computes in, and holds its parameters in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Parameters(NamedTuple):
    """The mask's two complex layers; index 0 of the first axis is the real part, 1 the imaginary."""

    w1: Tensor  # [2, K, D, Dh]
    b1: Tensor  # [2, K, Dh]
    w2: Tensor  # [2, K, Dh, D]
    b2: Tensor  # [2, K, D]


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""dx, dw1, db1, dw2, db2; a group that was not asked for has shape [0]."""


class MixerSpec(NamedTuple):
    """What a backend must know to say whether it can run a call: sizes, types, device, activation.

    Letters as everywhere in this project: x is [B, C, H, W], C = K * D channels in K blocks, F = W // 2 + 1.
    """

    batch: int  # B
    channels: int  # C
    height: int  # H
    width: int  # W
    blocks: int  # K
    hidden_size: int  # Dh, hidden channels of one block
    dtype: torch.dtype  # of x and y
    device: torch.device
    activation: str

    @classmethod
    def of(
        cls,
        x: Tensor,  # [B, C, H, W]
        w1: Tensor,  # [2, K, D, Dh]
        activation: str = "relu",
    ) -> MixerSpec:
        batch, channels, height, width = x.shape
        return cls(batch, channels, height, width, w1.shape[1], w1.shape[3], x.dtype, x.device, activation)

    @property
    def block_size(self) -> int:  # D
        return self.channels // self.blocks

    @property
    def frequencies(self) -> int:  # F, columns of the half spectrum
        return self.width // 2 + 1
