"""The DFT matrices that the Triton kernels multiply with; `kernels.dft` describes them."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from affnet_kernels.backends.reference import hermitian_weight


@cache  # keeps every matrix: a captured CUDA graph or another stream may still read it
def dft_matrices(
    height: int,
    width: int,
    padded_height: int,
    padded_width: int,
    padded_half: int,
    device: torch.device,
) -> Tensor:  # float16, one after the other: analysis [WP, FP, 2], synthesis [FP, 2, WP], along H [HP, 2, HP, 2]
    """The matrices for one image size: the high halves of all three, then their low halves.

    At most 24 KiB for one size, and 11 MiB for all sizes that the kernels take.
    """

    def angles(rows: int, columns: int, period: int) -> Tensor:
        index = torch.outer(torch.arange(rows), torch.arange(columns)) % period
        return index.double() * (2 * math.pi / period)

    half = min(width // 2 + 1, padded_half)
    angle = angles(width, half, width)
    analysis = torch.zeros(padded_width, padded_half, 2, dtype=torch.float64)
    analysis[:width, :half] = torch.stack((angle.cos(), -angle.sin()), -1)
    if width % 2 == 0 and half > width // 2:
        analysis[:width, width // 2, 1] = 0  # sin(pi w) is not zero in floating point
    weight = hermitian_weight(width, analysis)[:half]
    synthesis = torch.zeros(padded_half, 2, padded_width, dtype=torch.float64)
    synthesis[:half, :, :width] = analysis[:width, :half].permute(1, 2, 0) * weight[:, None, None]

    angle = angles(height, height, height)
    along_h = torch.zeros(padded_height, 2, padded_height, 2, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    for r, s, part in ((0, 0, cos), (0, 1, sin), (1, 0, -sin), (1, 1, cos)):
        along_h[:height, r, :height, s] = part
    exact = torch.cat([matrix.flatten() for matrix in (analysis, synthesis, along_h)])
    high = exact.half()
    return torch.cat((high, (exact - high).half())).to(device)
