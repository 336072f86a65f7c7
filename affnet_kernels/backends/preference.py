"""Which backend is tried first, by size."""

from __future__ import annotations

import math
from typing import NamedTuple

from affnet_kernels.spec import MixerSpec


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


def rank(
    name: str,
    spec: MixerSpec,
) -> int:
    """The sort key that puts the backends `spec` prefers first, in their order, and leaves the others as they stand."""
    order = preference(spec).order if spec.device.type == "cuda" else ()
    return order.index(name) if name in order else len(order)
