"""A copy, and the global mixers that the fused mixer is compared with, each with the residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def clone(x: Tensor) -> Tensor:
    """The same bytes in and out, and nothing else."""
    return x.clone()


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


def flash_attention(x: Tensor, qkv: Tensor, out: Tensor) -> Tensor:
    """The same with PyTorch's flash kernel and no other."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attention(x, qkv, out)


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


def fft_convolution(
    x: Tensor,  # [B, C, H, W]
    kernel: Tensor,  # [C, kernel height, kernel width]
) -> Tensor:  # [B, C, H, W]
    """What nvSubquadratic's fused_fft_conv2d computes: a static depthwise convolution through zero-padded FFTs."""
    height, width = x.shape[-2:]
    size = fft_size(height, width)
    product = torch.fft.rfft2(x, s=(size, size)) * torch.fft.rfft2(kernel, s=(size, size))
    return torch.fft.irfft2(product, s=(size, size))[..., size // 2 :, size // 2 :][..., :height, :width] + x


def fft_size(height: int, width: int) -> int:
    return 2 << (max(height, width) - 1).bit_length()  # twice the next power of two
