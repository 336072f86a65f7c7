"""The token mixers that an AFF block can hold: the adaptive frequency filter, and its rivals in the paper.

Each maps [B, C, H, W] to [B, C, H, W], residual included, so that one can stand in another's place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels.modules import AFFMixer

NUM_BLOCKS = 8  # channel blocks of the filter, as in the official networks
MIXERS = ("fused", "reference", "attention", "large-kernel", "mlp")


def token_mixer(
    name: str,  # one of MIXERS
    channels: int,  # C
    map_size: tuple[int, int],  # H, W; large-kernel and mlp have a weight for each position
    activation: str,
) -> nn.Module:
    """The mixer of that name; "fused" and "reference" are one module on different backends."""
    if name in ("fused", "reference"):
        backend = "reference" if name == "reference" else None
        return AFFMixer(channels, NUM_BLOCKS, activation=activation, backend=backend)
    if name == "attention":
        return SelfAttention(channels)
    return LargeKernel(channels, map_size) if name == "large-kernel" else TokenMLP(map_size)


class SelfAttention(nn.Module):
    """Softmax self-attention over the H * W tokens, with its projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(3 * channels, channels))
        self.out = nn.Parameter(torch.empty(channels, channels))
        for weight in (self.qkv, self.out):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return attention(x, self.qkv, self.out)


class LargeKernel(nn.Module):
    """A static depthwise convolution with a kernel as large as the map, the next odd size up."""

    def __init__(
        self,
        channels: int,
        map_size: tuple[int, int],  # H, W
    ) -> None:
        super().__init__()
        height, width = (size | 1 for size in map_size)
        self.kernel = nn.Parameter(torch.empty(channels, 1, height, width))
        nn.init.normal_(self.kernel, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.kernel)


class TokenMLP(nn.Module):
    """MLP-Mixer's token mixing, with as many hidden units as tokens: it takes maps of one size only."""

    def __init__(
        self,
        map_size: tuple[int, int],  # H, W
    ) -> None:
        super().__init__()
        self.map_size = map_size
        tokens = math.prod(map_size)
        self.w1 = nn.Parameter(torch.empty(tokens, tokens))
        self.w2 = nn.Parameter(torch.empty(tokens, tokens))
        for weight in (self.w1, self.w2):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.map_size:
            raise ValueError(
                f"TokenMLP: expected maps of {self.map_size[0]} x {self.map_size[1]}, got {x.shape[-2]} x {x.shape[-1]}"
                "; build the network with img_size of the images that it gets"
            )
        return token_mlp(x, self.w1, self.w2)


def attention(
    x: Tensor,  # [B, C, H, W]
    qkv: Tensor,  # [3C, C]
    out: Tensor,  # [C, C]
) -> Tensor:  # [B, C, H, W]
    """Softmax self-attention over the tokens, with its projections."""
    batch, channels, height, width = x.shape
    heads = head_count(channels)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = F.linear(tokens, qkv).view(batch, -1, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(mixed, out).transpose(1, 2).reshape(batch, channels, height, width) + x


def head_count(channels: int) -> int:
    """Heads of 32 channels, or of the nearest size that divides C, multiples of 8 first: flash kernels pad others."""
    sizes = [size for size in range(16, 65) if channels % size == 0] or [channels]
    best = min(sizes, key=lambda size: (size % 8 != 0, abs(size - 32)))
    return channels // best


def depthwise(
    x: Tensor,  # [B, C, H, W]
    kernel: Tensor,  # [C, 1, kernel height, kernel width]
) -> Tensor:  # [B, C, H, W]
    """A static depthwise convolution as large as the map, zero padding."""
    padding = kernel.shape[2] // 2, kernel.shape[3] // 2
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1]) + x


def token_mlp(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [N, N]
    w2: Tensor,  # [N, N]
) -> Tensor:  # [B, C, H, W]
    """MLP-Mixer's token mixing, with as many hidden units as tokens."""
    return F.linear(F.gelu(F.linear(x.flatten(2), w1)), w2).view_as(x) + x
