"""The calls that are measured, as data."""

from __future__ import annotations

from typing import NamedTuple

PASSES = ("forward", "forward+backward")


class Case(NamedTuple):
    """One call: x is [B, C, H, W], in K blocks of channels."""

    suite: str
    batch: int  # B
    channels: int  # C
    height: int  # H
    width: int  # W
    dtype: str = "float32"
    direction: str = "forward"  # one of PASSES
    blocks: int = 8  # K
    threads: int = 1  # on a CPU

    @property
    def name(self) -> str:
        return f"{self.channels}@{self.height}x{self.width}"

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def elements(self) -> int:
        return self.batch * self.channels * self.tokens


# The (C, H = W) pairs of AFFNet-ET, AFFNet-T and AFFNet at 256 pixels.
SHIPPED = ((64, 32), (104, 16), (144, 8), (96, 32), (160, 16), (192, 8), (128, 32), (256, 16), (320, 8))
# C, H = W, B: the shipped pairs at batches of a like size, and two of the 224-pixel networks.
HEADLINE = (
    *((64, 32, 4), (96, 32, 4), (128, 32, 4), (104, 16, 4), (160, 16, 4), (256, 16, 4)),
    *((144, 8, 8), (192, 8, 8), (320, 8, 8), (144, 14, 4), (320, 7, 8)),
)
# One shape of each map size, for providers that are slow to run or to prepare.
EXAMPLES = ((128, 32, 4), (256, 16, 4), (320, 8, 8))
SWEEP = (8, 16, 32, 48, 64, 96, 128)  # H = W
SWEEP_CHANNELS = 64


def _square(
    suite: str,
    shapes: tuple[tuple[int, int, int], ...],  # C, H = W, B
    dtypes: tuple[str, ...] = ("float32",),
) -> tuple[Case, ...]:
    return tuple(
        Case(suite, batch, channels, size, size, dtype, direction)
        for channels, size, batch in shapes
        for dtype in dtypes
        for direction in PASSES
    )


SUITES: dict[str, tuple[Case, ...]] = {
    "headline": _square("headline", HEADLINE),
    "early": _square("early", ((64, 28, 4),)),
    "single": _square("single", tuple((channels, 8, 1) for channels in (144, 192, 320))),
    "threads": tuple(
        Case("threads", 8, 128, 32, 32, direction=direction, threads=threads)
        for threads in (1, 2)
        for direction in PASSES
    ),
    "sweep": _square("sweep", tuple((SWEEP_CHANNELS, size, 1) for size in SWEEP)),
    "mixers": _square("mixers", EXAMPLES),
    "compiled": tuple(sorted(_square("compiled", EXAMPLES), key=lambda case: case.direction)),
    "quick": _square("quick", ((16, 8, 2), (16, 7, 1))),
}
# On a CUDA device, what matters most first: a run may be cut short.
CUDA_EXAMPLES = ((128, 32, 64), (256, 16, 64), (320, 8, 64))
CUDA_LARGE = ((128, 64, 16), (64, 128, 16))
SUITES |= {
    "shipped": tuple(
        case
        for batch, dtypes in (
            (64, ("float32", "bfloat16")),
            (1, ("float32", "bfloat16")),
            (64, ("float16",)),
            (1, ("float16",)),
        )
        for case in _square("shipped", tuple((channels, size, batch) for channels, size in SHIPPED), dtypes)
    ),
    "large": _square("large", CUDA_LARGE, ("float32", "bfloat16")),
    "against": _square("against", CUDA_EXAMPLES, ("bfloat16",)),
    "sweep-cuda": _square("sweep-cuda", tuple((128, size, 8) for size in SWEEP), ("bfloat16",)),
    "compiled-cuda": (
        *_square("compiled-cuda", CUDA_EXAMPLES[:1], ("float32", "bfloat16")),
        *_square("compiled-cuda", CUDA_LARGE),
    ),
}
CUDA_BENCH = ("compiled-cuda", "shipped", "against", "sweep-cuda", "large")
BENCH = ("headline", "early", "single", "threads", "sweep", "mixers", "compiled")
ABOUT = {
    "headline": "the nine shipped (C, H) pairs at 256 pixels and two of 224 pixels",
    "early": "the 28 x 28 maps of a 224-pixel image",
    "single": "batch 1 at 8 x 8, where the cost of the call shows",
    "threads": "one and two threads",
    "sweep": f"tokens from {SWEEP[0]}^2 to {SWEEP[-1]}^2 at {SWEEP_CHANNELS} channels, for the growth of each mixer",
    "mixers": "the mixer against the global mixers it stands in for, a shape of each map size",
    "compiled": "the mixer against torch.compile, a shape of each map size",
    "shipped": "the nine shipped (C, H) pairs at 256 pixels, batch 64 and 1, for a CUDA device",
    "large": "64 x 64 and 128 x 128, for a CUDA device",
    "against": "the mixer against the global mixers it stands in for, for a CUDA device",
    "sweep-cuda": "tokens from 8^2 to 128^2 at 128 channels, for a CUDA device",
    "compiled-cuda": "the mixer against torch.compile, for a CUDA device",
    "quick": "two tiny calls, to see that everything works",
}
