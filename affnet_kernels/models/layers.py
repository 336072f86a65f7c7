"""The layers that AFFNet shares with MobileNets: a convolution with its norm, alone, separable, and in a residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affnet_kernels.activations import activation_named


class ConvLayer(nn.Module):
    """Convolution, BatchNorm and activation, under the official keys `block.conv` and `block.norm`.

    Args:
        in_channels, out_channels: of the maps [B, C, H, W].
        kernel_size: odd; the padding keeps H and W at stride 1.
        stride, dilation, groups: of the convolution.
        norm: whether BatchNorm follows.
        bias: whether the convolution has one, which a BatchNorm would make useless.
        activation: a name of `affnet_kernels.activations.ACTIVATIONS`, or None for no activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        bias: bool = False,
        activation: str | None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.block = nn.Sequential()
        self.block.add_module(
            "conv",
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
        )
        if norm:
            self.block.add_module("norm", nn.BatchNorm2d(out_channels))
        if activation is not None:
            self.block.add_module("act", activation_named(activation).module())

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, out_channels, H / stride, W / stride]
        return self.block(x)


class SeparableConv(nn.Module):
    """A 3x3 that filters each channel, with BatchNorm, then a 1x1 that mixes them.

    Args:
        in_channels, out_channels: of the maps [B, C, H, W].
        stride: of the 3x3.
        norm, bias, activation: of the 1x1, as in `ConvLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        norm: bool = True,
        bias: bool = False,
        activation: str | None,
    ) -> None:
        super().__init__()
        self.dw_conv = ConvLayer(in_channels, in_channels, 3, stride=stride, groups=in_channels, activation=None)
        self.pw_conv = ConvLayer(in_channels, out_channels, norm=norm, bias=bias, activation=activation)

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, out_channels, H / stride, W / stride]
        return self.pw_conv(self.dw_conv(x))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand by a 1x1, filter each channel by a 3x3, project by a 1x1, add `x` where that fits.

    Args:
        in_channels, out_channels: of the maps [B, C, H, W].
        expansion: the 3x3 sees `in_channels * expansion` channels, rounded to a multiple of 8.
        stride, dilation: of the 3x3.
        activation: of the first two convolutions; the projection has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: float,
        *,
        stride: int = 1,
        dilation: int = 1,
        activation: str,
    ) -> None:
        super().__init__()
        hidden = make_divisible(round(in_channels * expansion), 8)
        self.use_residual = stride == 1 and in_channels == out_channels
        self.block = nn.Sequential()
        self.block.add_module("exp_1x1", ConvLayer(in_channels, hidden, activation=activation))
        self.block.add_module(
            "conv_3x3",
            ConvLayer(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, activation=activation),
        )
        self.block.add_module("red_1x1", ConvLayer(hidden, out_channels, activation=None))

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, out_channels, H / stride, W / stride]
        return x + self.block(x) if self.use_residual else self.block(x)


class ChannelLayerNorm(nn.Module):
    """The official `layer_norm`: over the channels of each pixel, divided by (deviation + eps).

    Not `nn.LayerNorm`, which divides by sqrt(variance + eps).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        deviation, mean = torch.std_mean(x, dim=1, keepdim=True, correction=0)
        normalised = (x - mean) / (deviation + self.eps)
        return torch.addcmul(self.bias[:, None, None], normalised, self.weight[:, None, None])


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of an image with probability `rate`, and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


NORMS = ("layer_norm_2d", "batch_norm_2d", "layer_norm")


def norm_layer(
    name: str,  # one of NORMS
    channels: int,
) -> nn.Module:
    """The norm of that official name: GroupNorm of one group, BatchNorm, or `ChannelLayerNorm`."""
    if name == "layer_norm_2d":
        return nn.GroupNorm(1, channels)
    return nn.BatchNorm2d(channels) if name == "batch_norm_2d" else ChannelLayerNorm(channels)


def make_divisible(channels: int, divisor: int) -> int:
    """The multiple of `divisor` nearest to `channels`, but never below 90 % of it."""
    nearest = max(divisor, (channels + divisor // 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor
