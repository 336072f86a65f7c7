"""What is measured, as data: cases, and suites of them with the providers that take part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

PASSES = ("forward", "forward+backward")
EAGER = ("provider", "eager")
OFFICIAL = ("provider", "official")
NETWORKS = {"affnet_et": 0.4, "affnet_t": 0.8, "affnet": 1.5}  # billions of multiply-adds at 256 pixels, by the paper


class Case(NamedTuple):
    """One call: x is [B, C, H, W], in K blocks of channels; images, where a network is named.

    "forward+backward" of a network is a training step: forward, cross-entropy, backward, AdamW. Its "bfloat16" is
    autocast.
    """

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
    network: str = ""  # one of NETWORKS, at H = W pixels; empty: a mixer alone

    @property
    def name(self) -> str:
        if self.network:
            return f"{self.network}@{self.height}"
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
        """The providers of a case. A copy has no backward pass worth timing, a network for inference has none."""
        left_out = TRAINING_ONLY if case.direction == "forward" else FORWARD_ONLY
        return tuple(name for name in self.providers if name not in left_out)


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
    networks: Iterable[str] = ("",),
) -> tuple[Case, ...]:
    """Every combination. A case that is its own basis of comparison is compared with eager."""
    found = [
        Case(suite, *shape, dtype, direction, blocks, count, activation, against, network)
        for shape in shapes
        for network in networks
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
THIN = (
    *((1, 64, 64, 1), (1, 64, 256, 1), (1, 64, 4096, 1)),
    *((1, 64, 1, 511), (1, 64, 1, 4096), (1, 64, 2, 1024), (1, 64, 3, 777)),
)
PRIME = (*square((64, 31, 1), (64, 53, 1), (64, 61, 1)), (1, 16, 97, 101), (1, 16, 257, 257))
EARTH = ((1, 16, 90, 180), (1, 8, 721, 1440))
WIDE = square((256, 16, 4), (512, 16, 2))  # D = 128 and 256 with K = 2

FUSED = ("cpu", "triton", "cuda")
COMPILED = ("compile", "compile-autotune", "compile-complex")
MIXERS = ("attention", "depthwise", "token-mlp")  # other global mixers
RIVALS = ("attention-flash", "fft-conv")
FUSED_NETWORKS = ("fused", "fused-inference", "fused-inference-graph", "fused-channels-last", "fused-compiled")
RIVAL_NETWORKS = ("with-attention", "with-large-kernel", "with-mlp")  # the same networks with other global mixers
FORWARD_ONLY = ("clone", "planned", "fused-inference", "fused-inference-graph")
TRAINING_ONLY = ("fused-channels-last",)

CUDA_EXAMPLES = square((128, 32, 64), (256, 16, 64), (320, 8, 64))
CUDA_LARGE = square((128, 64, 16), (64, 128, 16))


def _by_worth(batch: int) -> tuple[Shape, ...]:
    """The shipped shapes for a GPU: one of each map size, then the others."""
    first = [(128, 32), (256, 16), (320, 8)]
    return square(*((C, size, batch) for C, size in (*first, *(pair for pair in SHIPPED if pair not in first))))


def _suite(
    name: str,
    about: str,
    providers: tuple[str, ...],
    *groups: tuple[Iterable[Shape], dict[str, Any]],  # shapes, and what else `cases` is to vary
    device: str = "cpu",
    default: bool = True,
) -> Suite:
    found = tuple(case for shapes, options in groups for case in cases(name, shapes, **options))
    return Suite(name, about, found, providers, device, default)


_WITH_CLONE = ("eager", *FUSED, "clone")
_ON_CUDA = ("eager", *FUSED, "eager-graph", "clone")
_ACTIVATIONS: dict[str, Any] = {"activations": ("relu", "silu", "gelu"), "against": ("activation", "relu")}
_DTYPES: dict[str, Any] = {"dtypes": ("float32", "float16", "bfloat16"), "against": ("dtype", "float32")}
_BOTH: dict[str, Any] = {"dtypes": ("float32", "bfloat16")}
_BFLOAT16: dict[str, Any] = {"dtypes": ("bfloat16",)}
_INFER: dict[str, Any] = {"networks": NETWORKS, "directions": PASSES[:1], "blocks": 1, "against": OFFICIAL}
_TRAIN: dict[str, Any] = _INFER | {"directions": PASSES[1:]}
_ONE: dict[str, Any] = {"networks": ("affnet_t",)}


def _images(*pairs: tuple[int, int]) -> tuple[Shape, ...]:  # H = W, B
    return square(*((3, size, batch) for size, batch in pairs))


_SUITES = (
    _suite(
        "headline", "the nine shipped (C, H) pairs at 256 pixels and two of 224 pixels", _WITH_CLONE, (HEADLINE, {})
    ),
    _suite(
        "networks",
        "the published networks on photographs of 256 pixels: forward, the latency at batch 1, a training step",
        ("official", "fused", "fused-inference", "fused-channels-last"),
        (_images((256, 4), (256, 1)), _INFER),
        (_images((256, 2)), _TRAIN),
    ),
    _suite(
        "single",
        "batch 1 at 8 x 8, where the cost of the call shows, beside self-attention and a token-mixing MLP",
        ("eager", *FUSED, "attention", "token-mlp"),
        (SINGLE, {}),
    ),
    _suite(
        "overhead",
        "the public call against its backend's kernel called directly: what validation, dispatch and autograd cost",
        ("kernel", *FUSED),
        ((*square((8, 4, 1)), *SINGLE[:1]), {"against": ("provider", "kernel")}),
    ),
    _suite(
        "threads",
        "two threads against one",
        ("eager", *FUSED),
        (square((128, 32, 8)), {"threads": (1, 2), "against": ("threads", 1)}),
    ),
    _suite(
        "sweep",
        f"tokens from {SWEEP[0]}^2 to {SWEEP[-1]}^2 at 64 channels, for the growth of each mixer",
        (*_WITH_CLONE, *MIXERS),
        (square(*((64, size, 1) for size in SWEEP)), {}),
    ),
    _suite(
        "compiled",
        "the mixer against torch.compile, one shape of each map size",
        ("eager", *FUSED, "compile"),
        *((EXAMPLES, {"directions": (direction,)}) for direction in PASSES),
    ),
    _suite("activations", "the headline's SiLU, and GELU, against ReLU", FUSED, (EXAMPLES, _ACTIVATIONS)),
    _suite("dtypes", "float16 and bfloat16 against float32", FUSED, (EXAMPLES, _DTYPES)),
    _suite(
        "mixers",
        "the mixer against the global mixers that it replaces, one shape of each map size",
        (*_WITH_CLONE, *MIXERS),
        (EXAMPLES, {}),
        default=False,
    ),
    _suite(
        "cliffs",
        "sizes that FFTs and vector units find hard; automatic choice must never be slower than eager",
        ("eager", "auto", "cpu"),
        ((*THIN, *PRIME, *EARTH[:1]), {}),
        (WIDE, {"blocks": 2}),
        (EARTH[1:], {}),
        default=False,
    ),
    _suite(
        "relu",
        "the headline's shapes with ReLU, the layer's default",
        ("eager", *FUSED),
        (HEADLINE, {"activations": ("relu",)}),
        default=False,
    ),
    _suite(
        "networks-compiled",
        "the networks under torch.compile, which takes the better part of a minute for each",
        ("official", "fused", "compiled", "fused-compiled"),
        (_images((256, 4)), _INFER),
        (_images((256, 2)), _TRAIN | _ONE),
        default=False,
    ),
    _suite(
        "networks-mixers",
        "the networks with the global mixers that the paper compares, at three image sizes",
        ("official", "fused", *RIVAL_NETWORKS),
        (_images((224, 1), (256, 1), (512, 1)), _INFER),
        (_images((256, 2)), _TRAIN),
        default=False,
    ),
    _suite("early", "the 28 x 28 maps of a 224-pixel image", _WITH_CLONE, (square((64, 28, 4)), {}), default=False),
    _suite(
        "quick",
        "two tiny calls, to see that everything works",
        (*_WITH_CLONE, *MIXERS),
        (square((16, 8, 2), (16, 7, 1)), {}),
        default=False,
    ),
    _suite(
        "shipped",
        "the nine shipped (C, H) pairs at 256 pixels, batch 64",
        _ON_CUDA,
        (_by_worth(64), _BOTH),
        device="cuda",
    ),
    _suite(
        "paths-cuda",
        "the ways a call may go on CUDA: Triton, one launch of CUDA C++, cuFFT with a kernel between",
        ("triton", "cuda", "planned", "clone"),
        (CUDA_EXAMPLES, _BOTH | {"directions": PASSES[:1], "against": ("provider", "planned")}),
        device="cuda",
    ),
    _suite(
        "compiled-cuda",
        "the mixer against torch.compile",
        ("eager", *FUSED, "compile"),
        (CUDA_EXAMPLES[:1], _BOTH),
        (CUDA_LARGE, {}),
        device="cuda",
    ),
    _suite(
        "autotuned-cuda",
        "the mixer against the forms of torch.compile that take longer to compile",
        ("eager", *FUSED, "compile-complex", "compile-autotune"),
        ((*CUDA_EXAMPLES[:1], *CUDA_LARGE), {}),
        device="cuda",
    ),
    _suite("large", "64 x 64 and 128 x 128", _ON_CUDA, (CUDA_LARGE, _BOTH), device="cuda"),
    _suite(
        "against",
        "the mixer against the global mixers that it replaces",
        (*_WITH_CLONE, *MIXERS, *RIVALS),
        (CUDA_EXAMPLES, _BFLOAT16),
        device="cuda",
    ),
    _suite(
        "rivals",
        "768 channels at 16, 32 and 64 squared, where the fused FFT convolution of nvSubquadratic is published",
        (*_WITH_CLONE, *RIVALS),
        (square((768, 16, 8), (768, 32, 8), (768, 64, 8)), _BFLOAT16 | {"blocks": 48}),
        device="cuda",
    ),
    _suite("single-cuda", "the nine shipped pairs at batch 1", _ON_CUDA, (_by_worth(1), _BOTH), device="cuda"),
    _suite(
        "activations-cuda",
        "SiLU and GELU against ReLU",
        FUSED,
        (CUDA_EXAMPLES, _BFLOAT16 | _ACTIVATIONS),
        device="cuda",
    ),
    _suite("dtypes-cuda", "float16 and bfloat16 against float32", FUSED, (CUDA_EXAMPLES, _DTYPES), device="cuda"),
    _suite(
        "sweep-cuda",
        f"tokens from {SWEEP[0]}^2 to {SWEEP[-1]}^2 at 128 channels",
        (*_WITH_CLONE, *MIXERS),
        (square(*((128, size, 8) for size in SWEEP)), _BFLOAT16),
        device="cuda",
    ),
    _suite(
        "networks-cuda",
        "the published networks at 256 pixels: forward, a training step, the latency at batch 1",
        ("official", "fused", "fused-inference", "fused-channels-last", "official-graph", "fused-inference-graph"),
        (_images((256, 64)), _INFER | _BFLOAT16),
        (_images((256, 64)), _TRAIN | _BFLOAT16),
        (_images((256, 1)), _INFER),
        (_images((256, 64)), _INFER),
        device="cuda",
    ),
    _suite(
        "networks-mixers-cuda",
        "one network with the global mixers that the paper compares, at three image sizes",
        ("official", "fused", *RIVAL_NETWORKS),
        (_images((224, 16), (256, 16), (512, 16)), _INFER | _BFLOAT16 | _ONE),
        (_images((256, 16)), _TRAIN | _BFLOAT16 | _ONE),
        device="cuda",
    ),
    _suite(
        "networks-compiled-cuda",
        "one network under torch.compile",
        ("official", "fused", "compiled", "fused-compiled"),
        (_images((256, 64)), _INFER | _BFLOAT16 | _ONE),
        device="cuda",
    ),
)
SUITES = {suite.name: suite for suite in _SUITES}


def default_suites(device: str) -> tuple[str, ...]:
    return tuple(suite.name for suite in SUITES.values() if suite.device == device and suite.default)
