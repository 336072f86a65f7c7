"""What is measured, as data: cases, and suites of them with the providers that take part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

PASSES = ("forward", "forward+backward")
EAGER = ("provider", "eager")


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
    activation: str = "silu"  # what the released networks use
    # What the ratios compare with: the same call with this field changed. The field "provider" is the provider's name.
    against: tuple[str, str | int] = EAGER

    @property
    def name(self) -> str:
        blocks = "" if self.blocks == 8 else f" K={self.blocks}"
        return f"{self.channels}@{self.height}x{self.width}{blocks}"

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def elements(self) -> int:
        return self.batch * self.channels * self.tokens


class Suite(NamedTuple):
    """Cases that are measured and reported together, the most important first: a run may be cut short."""

    name: str
    about: str
    cases: tuple[Case, ...]
    providers: tuple[str, ...]
    device: str = "cpu"
    default: bool = True  # part of a run that names no suite

    def providers_for(self, case: Case) -> tuple[str, ...]:
        """The providers of a case. A copy has no backward pass worth timing."""
        return tuple(name for name in self.providers if name != "clone" or case.direction == "forward")


Shape = tuple[int, int, int, int]  # B, C, H, W


def square(*shapes: tuple[int, int, int]) -> tuple[Shape, ...]:  # C, H = W, B
    return tuple((batch, channels, size, size) for channels, size, batch in shapes)


def cases(
    suite: str,
    shapes: Iterable[Shape],
    dtypes: tuple[str, ...] = ("float32",),
    activations: tuple[str, ...] = ("silu",),
    threads: tuple[int, ...] = (1,),
    directions: tuple[str, ...] = PASSES,
    blocks: int = 8,
    against: tuple[str, str | int] = EAGER,
) -> tuple[Case, ...]:
    """Every combination. A case that is its own basis of comparison is compared with eager."""
    found = [
        Case(suite, *shape, dtype, direction, blocks, count, activation, against)
        for shape in shapes
        for direction in directions
        for count in threads
        for dtype in dtypes
        for activation in activations
    ]
    field, value = against
    return tuple(
        case._replace(against=EAGER) if field != "provider" and getattr(case, field) == value else case
        for case in found
    )


# The (C, H = W) pairs of AFFNet-ET, AFFNet-T and AFFNet at 256 pixels.
SHIPPED = ((64, 32), (104, 16), (144, 8), (96, 32), (160, 16), (192, 8), (128, 32), (256, 16), (320, 8))
# The shipped pairs at batches of a like size, and two pairs of the 224-pixel networks.
HEADLINE = square(
    *((64, 32, 4), (96, 32, 4), (128, 32, 4), (104, 16, 4), (160, 16, 4), (256, 16, 4)),
    *((144, 8, 8), (192, 8, 8), (320, 8, 8), (144, 14, 4), (320, 7, 8)),
)
# One shape of each map size, for providers that are slow to run or to prepare.
EXAMPLES = square((128, 32, 4), (256, 16, 4), (320, 8, 8))
SINGLE = square((144, 8, 1), (192, 8, 1), (320, 8, 1))
SWEEP = (8, 16, 32, 48, 64, 96, 128)  # H = W
# Maps of one row or column, maps of a few long rows, prime sizes, and the latitudes and longitudes of weather models.
THIN = ((1, 64, 64, 1), (1, 64, 256, 1), (1, 64, 4096, 1), (1, 64, 1, 511), (1, 64, 1, 4096))
THIN = (*THIN, (1, 64, 2, 1024), (1, 64, 3, 777))
PRIME = (*square((64, 31, 1), (64, 53, 1), (64, 61, 1)), (1, 16, 97, 101), (1, 16, 257, 257))
EARTH = ((1, 16, 90, 180), (1, 8, 721, 1440))
WIDE = {128: square((256, 16, 4)), 256: square((512, 16, 2))}  # by D, with K = 2

FUSED = ("cpu", "triton", "cuda")
COMPILED = ("compile", "compile-autotune", "compile-complex")
MIXERS = ("attention", "depthwise", "token-mlp")  # other global mixers
RIVALS = ("attention-flash", "fft-conv")

CUDA_EXAMPLES = square((128, 32, 64), (256, 16, 64), (320, 8, 64))
CUDA_LARGE = square((128, 64, 16), (64, 128, 16))
BOTH = ("float32", "bfloat16")


def _by_worth(batch: int) -> tuple[Shape, ...]:
    """The shipped shapes for a GPU: one of each map size, then the others."""
    first = [(128, 32), (256, 16), (320, 8)]
    return square(*((C, size, batch) for C, size in (*first, *(pair for pair in SHIPPED if pair not in first))))


CPU_SUITES = (
    Suite(
        "headline",
        "the nine shipped (C, H) pairs at 256 pixels and two of 224 pixels",
        cases("headline", HEADLINE),
        ("eager", *FUSED, "clone"),
    ),
    Suite(
        "single",
        "batch 1 at 8 x 8, where the cost of the call shows, beside self-attention and a token-mixing MLP",
        cases("single", SINGLE),
        ("eager", *FUSED, "attention", "token-mlp"),
    ),
    Suite(
        "overhead",
        "the public call against its backend's kernel called directly: what validation, dispatch and autograd cost",
        cases("overhead", (*square((8, 4, 1)), *SINGLE[:1]), against=("provider", "kernel")),
        ("kernel", *FUSED),
    ),
    Suite(
        "threads",
        "two threads against one",
        cases("threads", square((128, 32, 8)), threads=(1, 2), against=("threads", 1)),
        ("eager", *FUSED),
    ),
    Suite(
        "sweep",
        f"tokens from {SWEEP[0]}^2 to {SWEEP[-1]}^2 at 64 channels, for the growth of each mixer",
        cases("sweep", square(*((64, size, 1) for size in SWEEP))),
        ("eager", *FUSED, "clone", *MIXERS),
    ),
    Suite(
        "compiled",
        "the mixer against torch.compile, one shape of each map size",
        tuple(case for way in PASSES for case in cases("compiled", EXAMPLES, directions=(way,))),
        ("eager", *FUSED, *COMPILED),
    ),
    Suite(
        "activations",
        "the headline's SiLU, and GELU, against ReLU",
        cases("activations", EXAMPLES, activations=("relu", "silu", "gelu"), against=("activation", "relu")),
        FUSED,
    ),
    Suite(
        "dtypes",
        "float16 and bfloat16 against float32",
        cases("dtypes", EXAMPLES, dtypes=("float32", "float16", "bfloat16"), against=("dtype", "float32")),
        FUSED,
    ),
    Suite(
        "mixers",
        "the mixer against the global mixers that it replaces, one shape of each map size",
        cases("mixers", EXAMPLES),
        ("eager", *FUSED, "clone", *MIXERS),
        default=False,
    ),
    Suite(
        "cliffs",
        "sizes that FFTs and vector units find hard; automatic choice must never be slower than eager",
        (
            *cases("cliffs", (*THIN, *PRIME, *EARTH[:1])),
            *(case for shapes in WIDE.values() for case in cases("cliffs", shapes, blocks=2)),
            *cases("cliffs", EARTH[1:]),
        ),
        ("eager", "auto", "cpu"),
        default=False,
    ),
    Suite(
        "relu",
        "the headline's shapes with ReLU, the layer's default",
        cases("relu", HEADLINE, activations=("relu",)),
        ("eager", *FUSED),
        default=False,
    ),
    Suite(
        "early",
        "the 28 x 28 maps of a 224-pixel image",
        cases("early", square((64, 28, 4))),
        ("eager", *FUSED, "clone"),
        default=False,
    ),
    Suite(
        "quick",
        "two tiny calls, to see that everything works",
        cases("quick", square((16, 8, 2), (16, 7, 1))),
        ("eager", *FUSED, "clone", *MIXERS),
        default=False,
    ),
)
CUDA_SUITES = (
    Suite(
        "shipped",
        "the nine shipped (C, H) pairs at 256 pixels, batch 64",
        cases("shipped", _by_worth(64), dtypes=BOTH),
        ("eager", *FUSED, "eager-graph", "clone"),
        "cuda",
    ),
    Suite(
        "compiled-cuda",
        "the mixer against torch.compile",
        (
            *cases("compiled-cuda", CUDA_EXAMPLES[:1], dtypes=BOTH),
            *cases("compiled-cuda", CUDA_LARGE),
        ),
        ("eager", *FUSED, "compile"),
        "cuda",
    ),
    Suite(
        "autotuned-cuda",
        "the mixer against the forms of torch.compile that take longer to compile",
        cases("autotuned-cuda", (*CUDA_EXAMPLES[:1], *CUDA_LARGE)),
        ("eager", *FUSED, "compile-complex", "compile-autotune"),
        "cuda",
    ),
    Suite(
        "large",
        "64 x 64 and 128 x 128",
        cases("large", CUDA_LARGE, dtypes=BOTH),
        ("eager", *FUSED, "eager-graph", "clone"),
        "cuda",
    ),
    Suite(
        "against",
        "the mixer against the global mixers that it replaces",
        cases("against", CUDA_EXAMPLES, dtypes=("bfloat16",)),
        ("eager", *FUSED, "clone", *MIXERS, *RIVALS),
        "cuda",
    ),
    Suite(
        "rivals",
        "768 channels at 16, 32 and 64 squared, where the fused FFT convolution of nvSubquadratic is published",
        cases("rivals", square((768, 16, 8), (768, 32, 8), (768, 64, 8)), dtypes=("bfloat16",), blocks=16),
        ("eager", *FUSED, "clone", *RIVALS),
        "cuda",
    ),
    Suite(
        "single-cuda",
        "the nine shipped (C, H) pairs at batch 1",
        cases("single-cuda", _by_worth(1), dtypes=BOTH),
        ("eager", *FUSED, "eager-graph", "clone"),
        "cuda",
    ),
    Suite(
        "activations-cuda",
        "SiLU and GELU against ReLU",
        cases(
            "activations-cuda", CUDA_EXAMPLES, ("bfloat16",), ("relu", "silu", "gelu"), against=("activation", "relu")
        ),
        FUSED,
        "cuda",
    ),
    Suite(
        "dtypes-cuda",
        "float16 and bfloat16 against float32",
        cases("dtypes-cuda", CUDA_EXAMPLES, ("float32", "float16", "bfloat16"), against=("dtype", "float32")),
        FUSED,
        "cuda",
    ),
    Suite(
        "sweep-cuda",
        f"tokens from {SWEEP[0]}^2 to {SWEEP[-1]}^2 at 128 channels",
        cases("sweep-cuda", square(*((128, size, 8) for size in SWEEP)), dtypes=("bfloat16",)),
        ("eager", *FUSED, "clone", *MIXERS),
        "cuda",
    ),
)
SUITES = {suite.name: suite for suite in (*CPU_SUITES, *CUDA_SUITES)}


def default_suites(device: str) -> tuple[str, ...]:
    return tuple(suite.name for suite in SUITES.values() if suite.device == device and suite.default)
