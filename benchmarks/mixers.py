"""A copy, and the global mixers of other libraries that the fused mixer is compared with, each with the residual."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from affnet_kernels.models.token_mixers import attention


def clone(x: Tensor) -> Tensor:
    """The same bytes in and out, and nothing else."""
    return x.clone()


def flash_attention(x: Tensor, qkv: Tensor, out: Tensor) -> Tensor:
    """`attention` by PyTorch's flash kernel and no other."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attention(x, qkv, out)


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
