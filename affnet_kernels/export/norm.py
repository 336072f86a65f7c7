"""GroupNorm of one group for runtimes whose own loses accuracy on large maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExportableNorm(nn.Module):
    """What `nn.GroupNorm(1, C)` computes, with means taken over the pixels first and then over the channels.

    Exporters make GroupNorm an InstanceNormalization over one long axis. Its sums in float32 are off by 9e-5 on maps of
    320 channels of 64 x 64 in onnxruntime, where those of two steps are off by 5e-7.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = norm.weight  # [C], or None
        self.bias = norm.bias  # [C], or None

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        centred = x - _mean(x)
        y = centred * torch.rsqrt(_mean(centred * centred) + self.eps)
        return y if self.weight is None else y * self.weight[:, None, None] + self.bias[:, None, None]


def _mean(
    x: Tensor,  # [B, C, H, W]
) -> Tensor:  # [B, 1, 1, 1]
    return x.mean((2, 3), keepdim=True).mean(1, keepdim=True)
