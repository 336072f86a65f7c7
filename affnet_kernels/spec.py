"""The static facts of one mixer call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("relu", "silu", "gelu", "identity")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def compute_dtype(
    dtype: torch.dtype,
) -> torch.dtype:
    """The type the mixer computes in, and holds its parameters in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
