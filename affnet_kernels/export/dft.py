"""The orthonormal real 2-D DFT and its two-step inverse as real matrices, one along each axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from affnet_kernels.backends.reference import hermitian_weight


def along_width(
    width: int,  # W
) -> tuple[Tensor, Tensor]:  # [(r, F), W] and [W, (r, F)], float64
    """The real DFT to the half spectrum, real parts before imaginary ones, and its inverse.

    The inverse gives the weight 0 to the imaginary parts of the DC and Nyquist columns, which the definition ignores.
    """
    columns = width // 2 + 1
    cosine, sine = _angles(columns, width)
    weight = hermitian_weight(width, cosine)[:, None]
    sine = sine * (weight == 2)  # zero for DC and Nyquist, up to the rounding of pi
    forward = torch.cat((cosine, -sine))
    return forward, (forward * weight.repeat(2, 1)).T


def along_height(
    height: int,  # H
) -> Tensor:  # [(r, H), (r, H)], float64
    """The complex DFT of stacked real and imaginary parts; its inverse is the transposed matrix."""
    cosine, sine = _angles(height, height)
    return torch.cat((torch.cat((cosine, sine), dim=1), torch.cat((-sine, cosine), dim=1)))


def _angles(
    frequencies: int,
    size: int,
) -> tuple[Tensor, Tensor]:  # [frequencies, size]
    """Cosine and sine of 2 pi f n / size, divided by sqrt(size); the product is reduced while it is exact."""
    turns = torch.outer(torch.arange(frequencies), torch.arange(size)) % size
    angles = turns.double() * (2 * math.pi / size)
    return torch.cos(angles) / math.sqrt(size), torch.sin(angles) / math.sqrt(size)
