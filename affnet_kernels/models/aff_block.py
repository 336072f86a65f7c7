"""The AFF block, which takes the place of MobileViT's transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affnet_kernels.models.layers import ConvLayer, DropPath, InvertedResidual, norm_layer
from affnet_kernels.models.token_mixers import token_mixer

MLP_EXPANSION = 2


class MixerBlock(nn.Module):
    """norm, inverted residual, norm, token mixer; and `x` is added.

    Args:
        channels: C of the maps [B, C, H, W].
        mixer, map_size, activation, norm: as in `AFFBlock`.
        drop_path_rate: how often training drops the block for an image.
    """

    def __init__(
        self,
        channels: int,
        *,
        mixer: str,
        map_size: tuple[int, int],  # H, W
        activation: str,
        norm: str,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(norm, channels)
        self.filter = token_mixer(mixer, channels, map_size, activation)
        self.norm2 = norm_layer(norm, channels)
        self.mlp = InvertedResidual(channels, channels, MLP_EXPANSION, activation=activation)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        return x + self.drop_path(self.filter(self.norm2(self.mlp(self.norm1(x)))))


class AFFBlock(nn.Module):
    """Some mixer blocks and a norm, a projection, and a fusion with the block's own input.

    Args:
        channels: C of the maps [B, C, H, W].
        depth: how many mixer blocks.
        fusion: whether the input is concatenated and fused by a 1x1 convolution.
        mixer: the token mixer, a name of `token_mixers.MIXERS`.
        map_size: H and W, which the mixers "large-kernel" and "mlp" need to know.
        activation, norm: by name.
        drop_path_rates: one for each mixer block.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        *,
        fusion: bool,
        mixer: str,
        map_size: tuple[int, int],  # H, W
        activation: str,
        norm: str,
        drop_path_rates: list[float],
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            MixerBlock(channels, mixer=mixer, map_size=map_size, activation=activation, norm=norm, drop_path_rate=rate)
            for rate in drop_path_rates[:depth]
        ]
        self.global_rep = nn.Sequential(*blocks, norm_layer(norm, channels))
        self.conv_proj = ConvLayer(channels, channels, activation=None)
        self.fusion = ConvLayer(2 * channels, channels, activation=activation) if fusion else None

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        projected = self.conv_proj(self.global_rep(x))
        return projected if self.fusion is None else self.fusion(torch.cat((x, projected), dim=1))
