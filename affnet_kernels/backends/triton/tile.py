"""What a kernel knows at compile time about the tiles it processes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from affnet_kernels.backends.triton.launch_table import Row
from affnet_kernels.spec import MixerSpec


class Tile(NamedTuple):
    """The images of one channel block that one program processes together, and how it does so.

    Letters as in `MixerSpec`; sizes with a P are padded, to powers of two.
    """

    K: int
    D: int
    DH: int
    H: int
    W: int
    F: int
    DP: int
    DHP: int
    HP: int
    WP: int
    FP: int
    NYQUIST: bool  # the Nyquist column is not among the FP
    IMAGES: int
    CHANNEL_CHUNK: int
    FREQUENCY_CHUNK: int
    STAGED: bool  # in scratch memory, not in registers
    NOINLINE: bool  # the steps of a staged tile are functions
    EXACT: bool  # x is of a 16-bit dtype: the low halves of its values are zero
    EXPONENT: int  # images are scaled to 2^EXPONENT, so that their spectra fit float16
    PARTIAL_SUMS: int  # floats of a program's partial sums, rounded up to whole 16 bytes
    PASSES: int  # products for one product, see `kernels.product`
    ACTIVATION: str


def make_tile(
    row: Row,
    spec: MixerSpec,
    passes: int,
    capability: int,  # the major number
) -> Tile:
    # The tensor cores contract over at least 16 numbers, which are 8 pairs of re and im.
    size, hidden = spec.block_size, spec.hidden_size
    padded_size, padded_hidden = max(8, _power_of_two(size)), max(8, _power_of_two(hidden))
    half = spec.frequencies
    nyquist = spec.width >= 16 and half - 1 == _power_of_two(half - 1)
    return Tile(
        K=spec.blocks,
        D=size,
        DH=hidden,
        H=spec.height,
        W=spec.width,
        F=half,
        DP=padded_size,
        DHP=padded_hidden,
        HP=max(16 if nyquist else 8, _power_of_two(spec.height)),
        WP=max(16, _power_of_two(spec.width)),
        FP=half - 1 if nyquist else max(8, _power_of_two(half)),
        NYQUIST=nyquist,
        IMAGES=row.images,
        CHANNEL_CHUNK=row.channel_chunk or padded_size,
        FREQUENCY_CHUNK=row.frequency_chunk,
        STAGED=row.channel_chunk > 0,
        NOINLINE=capability != 10,
        EXACT=spec.dtype != torch.float32,
        EXPONENT=14 - (spec.height * spec.width - 1).bit_length(),
        PARTIAL_SUMS=partial_sums(spec),
        PASSES=passes,
        ACTIVATION=spec.activation,
    )


def partial_sums(
    spec: MixerSpec,
) -> int:
    """Floats of one program's partial sums: [2 D + 1, 2 Dh], then [2 Dh + 1, 2 D], then what rounds up to 16 bytes."""
    size, hidden = spec.block_size, spec.hidden_size
    return -(-(8 * size * hidden + 2 * size + 2 * hidden) // 4) * 4


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
