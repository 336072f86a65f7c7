"""Which kernel is tried first, by device and size.

The backend "cuda" has two ways, "one-launch" and "planned"; csrc/cuda/fused/path.h says which a call takes. Every other
backend has one, of its own name.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from affnet_kernels.backends.triton.launch_table import MAX_CHANNELS, MAX_SIZE
from affnet_kernels.spec import DTYPES, MixerSpec


class Preference(NamedTuple):
    """An order, and the calls it is for: the first row that fits is taken."""

    device: str  # type
    size: float  # H and W up to
    channels: float  # D and Dh up to
    dtypes: tuple[torch.dtype, ...]  # of x
    order: tuple[str, ...]  # of kernels
    basis: str  # "measured on <device>", or "predicted"
    why: str


PADDED_SIZE = 10  # of maps that one launch in bfloat16 pads to more than twice their area
NARROW = 24  # channels of a block, up to which the mask's products take less time than the transforms

PREFERENCES = (
    Preference(
        "cuda",
        PADDED_SIZE,
        MAX_CHANNELS,
        (torch.bfloat16,),
        ("triton", "one-launch", "planned"),
        "predicted",
        "Triton's kernel takes several small maps at a time, where one launch in CUDA C++ pads each to 16 x 16",
    ),
    Preference(
        "cuda",
        MAX_SIZE,
        NARROW,
        DTYPES,
        ("one-launch", "triton", "planned"),
        "predicted",
        "one launch reads x and writes y once, and cuFFT moves five times as much; Triton pads to powers of two",
    ),
    Preference(
        "cuda",
        MAX_SIZE,
        MAX_CHANNELS,
        (torch.bfloat16,),
        ("one-launch", "triton", "planned"),
        "predicted",
        "as for narrower blocks: half precision leaves the tensor cores time for wide ones",
    ),
    Preference(
        "cuda",
        MAX_SIZE,
        MAX_CHANNELS,
        DTYPES,
        ("triton", "one-launch", "planned"),
        "predicted",
        "the products of wide blocks in float32, three in TF32 for each, keep one launch busy for as long as Triton's",
    ),
    Preference(
        "cuda",
        math.inf,
        math.inf,
        DTYPES,
        ("one-launch", "planned", "triton"),
        "predicted",
        "Triton's kernels are not for this size",
    ),
    Preference(
        "cpu",
        math.inf,
        math.inf,
        DTYPES,
        ("cpu",),
        "measured on AMD EPYC (Zen 4)",
        "one pass over each tile while the caches hold it is faster than eager PyTorch at every size measured",
    ),
)
NO_PREFERENCE = Preference("any", math.inf, math.inf, DTYPES, (), "none", "no other backend runs on this device")


def preference(
    spec: MixerSpec,
) -> Preference:
    """The row for `spec`."""
    size, channels = max(spec.height, spec.width), max(spec.block_size, spec.hidden_size)
    rows = (row for row in PREFERENCES if row.device == spec.device.type and spec.dtype in row.dtypes)
    return next((row for row in rows if size <= row.size and channels <= row.channels), NO_PREFERENCE)


def rank(
    kernel: str,
    spec: MixerSpec,
) -> int:
    """The sort key that puts the kernels `spec` prefers first, in their order, and leaves the others as they stand."""
    order = preference(spec).order
    return order.index(kernel) if kernel in order else len(order)
