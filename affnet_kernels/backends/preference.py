"""Which backend is tried first, by size."""

from __future__ import annotations

import math
from typing import NamedTuple

from affnet_kernels.spec import MixerSpec, compute_dtype


class Preference(NamedTuple):
    """An order, and the calls it is for: the first row that fits is taken."""

    size: float  # H and W up to
    channels: float  # D and Dh up to
    order: tuple[str, ...]
    basis: str  # "measured on <device>", or "predicted"
    why: str


CUDA_PREFERENCES = (
    Preference(
        32,
        64,
        ("triton", "cuda"),
        "predicted",
        "one launch, the spectrum in registers or the L2 cache: 8 bytes an element in float32; between plans it is 40",
    ),
    Preference(math.inf, math.inf, ("cuda", "triton"), "predicted", "the spectrum of a block does not fit on chip"),
)


def preference(
    spec: MixerSpec,
) -> Preference:
    """The row for `spec`, which is on a CUDA device."""
    size, channels = max(spec.height, spec.width), max(spec.block_size, spec.hidden_size)
    return next(row for row in CUDA_PREFERENCES if size <= row.size and channels <= row.channels)


CPU_ROWS, CPU_WIDTH = 4, 512
CPU_TILE_BYTES, CPU_TILE_IMAGES = 256 << 10, 8  # as in csrc/cpu/fft/plan.cpp


def is_thin(
    spec: MixerSpec,
) -> bool:
    """Whether a tile of the CPU kernel has so few and so long rows that its vector lanes, one a row, idle for long.

    AMD EPYC (Zen 4), one thread, 64 channels, forward, times as fast as the reference: 1 x 4096 0.34, 2 x 2048 0.68,
    but 4 x 1024 1.03, 8 x 512 2.5, 1 x 256 1.04, 1 x 64 4.4. Rows of several images share a tile while it is small.
    """
    plane = spec.height * spec.frequencies * spec.block_size * 2 * compute_dtype(spec.dtype).itemsize
    images = 1
    while 2 * images <= min(spec.batch, CPU_TILE_IMAGES) and 2 * images * plane <= CPU_TILE_BYTES:
        images *= 2
    return spec.height * images < CPU_ROWS and spec.width >= CPU_WIDTH


def rank(
    name: str,
    spec: MixerSpec,
) -> int:
    """Sorts backends: those that this spec prefers, in their order, then all others as they stand."""
    order: tuple[str, ...] = ()
    if spec.device.type == "cuda":
        order = preference(spec).order
    elif spec.device.type == "cpu" and is_thin(spec):
        order = ("reference",)
    return order.index(name) if name in order else len(order)
