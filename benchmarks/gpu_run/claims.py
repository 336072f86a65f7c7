"""What the mixer should reach on a GPU, as data, and what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.cases import COMPILED, PASSES
from benchmarks.results import UNTIMED, Result

FORWARD, BOTH = PASSES
Measure = Callable[["Lookup"], float | None]


class Claim(NamedTuple):
    what: str
    at_least: float | None
    at_most: float | None
    unit: str
    measure: Measure

    def met(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least) or (self.at_most is not None and value > self.at_most)
        )

    @property
    def asked(self) -> str:
        bound = self.at_least if self.at_least is not None else self.at_most
        return f"{'>=' if self.at_least is not None else '<='} {shown(bound, self.unit)}"


def shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "%":
        return f"{value:.0%}"
    return f"{value:.3g}{unit if unit == 'x' else ' ' + unit if unit else ''}"


class Lookup:
    """Good rows with SiLU by shape, type, pass and provider, whatever their suite."""

    def __init__(self, rows: Iterable[Result]) -> None:
        self.rows = [row for row in rows if row.status == "OK"]
        timed = [row for row in self.rows if row.suite not in UNTIMED and row.activation == "silu"]
        self._timed = {(r.channels, r.height, r.batch, r.dtype, r.direction, r.provider): r for r in timed}

    def row(self, shape: tuple[int, int, int], dtype: str, direction: str, providers: Iterable[str]) -> Result | None:
        """The row of the fastest of some providers."""
        found = (self._timed.get((*shape, dtype, direction, provider)) for provider in providers)
        return min((row for row in found if row is not None), key=lambda row: row.p50_us, default=None)


def faster(provider: str, than: tuple[str, ...], shape: tuple[int, int, int], dtype: str, direction: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        ours, theirs = rows.row(shape, dtype, direction, (provider,)), rows.row(shape, dtype, direction, than)
        return theirs.p50_us / ours.p50_us if ours and theirs else None

    return measure


def of_clone(provider: str, shape: tuple[int, int, int], dtype: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        ours, copy = rows.row(shape, dtype, FORWARD, (provider,)), rows.row(shape, dtype, FORWARD, ("clone",))
        return ours.gb_per_s / copy.gb_per_s if ours and copy else None

    return measure


def time_of(provider: str, shape: tuple[int, int, int], dtype: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        ours = rows.row(shape, dtype, FORWARD, (provider,))
        return ours.p50_us if ours else None

    return measure


def less_memory(provider: str, shape: tuple[int, int, int], dtype: str, direction: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        ours, eager = (rows.row(shape, dtype, direction, (name,)) for name in (provider, "eager"))
        return eager.peak_bytes / ours.peak_bytes if ours and eager and ours.peak_bytes else None

    return measure


def most_launches(provider: str, direction: str, largest: int = 1 << 20) -> Measure:
    """On maps of H and W up to `largest`."""

    def measure(rows: Lookup) -> float | None:
        counted = [r for r in rows.rows if (r.suite, r.provider, r.direction) == ("launches", provider, direction)]
        counted = [r for r in counted if max(r.height, r.width) <= largest]
        return max((row.launches for row in counted if row.device_type == "cuda" and row.launches > 0), default=None)

    return measure


def of_clones_rate(provider: str, shape: tuple[int, int, int], dtype: str) -> Measure:
    """The rate of a forward and backward pass, for the bytes that it must move, over that of a copy."""

    def measure(rows: Lookup) -> float | None:
        ours, copy = rows.row(shape, dtype, BOTH, (provider,)), rows.row(shape, dtype, FORWARD, ("clone",))
        return ours.gb_per_s / copy.gb_per_s if ours and copy else None

    return measure


def costlier(provider: str, shape: tuple[int, int, int], dtype: str, activation: str, than: str) -> Measure:
    """The forward time with an activation over that with another."""

    def measure(rows: Lookup) -> float | None:
        found = {
            row.activation: row.p50_us
            for row in rows.rows
            if (row.suite, row.provider, row.direction, row.dtype) == ("activations-cuda", provider, FORWARD, dtype)
            and (row.channels, row.height, row.batch) == shape
        }
        return found[activation] / found[than] if {activation, than} <= set(found) else None

    return measure


def worst_error(suite: str, provider: str, direction: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        wanted = (suite, provider, direction, "float32")
        return max(
            (row.error for row in rows.rows if (row.suite, row.provider, row.direction, row.dtype) == wanted),
            default=None,
        )

    return measure


LARGE, MIDDLE, SMALL = (128, 32, 64), (256, 16, 64), (320, 8, 64)  # C, H = W, B


def _named(provider: str, shape: tuple[int, int, int], dtype: str, direction: str) -> str:
    return f"{provider}, {shape[0]}@{shape[1]}x{shape[1]}, B={shape[2]}, {dtype}, {direction}"


def _compared(
    provider: str,
    shape: tuple[int, int, int],
    dtype: str,
    direction: str,
    *bounds: tuple[str, tuple[str, ...], float],  # what the speed is compared with, in words and providers; at least
) -> Iterable[Claim]:
    named = _named(provider, shape, dtype, direction)
    for words, than, at_least in bounds:
        yield Claim(
            f"{named}: speed against {words}", at_least, None, "x", faster(provider, than, shape, dtype, direction)
        )


def _at_most(what: str, bound: float, unit: str, measure: Measure) -> Claim:
    return Claim(what, None, bound, unit, measure)


def _claims() -> Iterable[Claim]:
    for dtype, eager, compiled, share in (("float32", 6, 3, 0.20), ("bfloat16", 10, 4, 0.25)):
        bounds = ("eager", ("eager",), eager), ("the best compile", COMPILED, compiled)
        yield from _compared("triton", LARGE, dtype, FORWARD, *bounds)
        what = f"{_named('triton', LARGE, dtype, FORWARD)}: of clone's bandwidth"
        yield Claim(what, share, None, "%", of_clone("triton", LARGE, dtype))
    for shape, microseconds in ((MIDDLE, 12.0), (SMALL, 8.0)):
        for dtype in ("float32", "bfloat16"):
            named = _named("triton", shape, dtype, FORWARD)
            yield _at_most(f"{named}: time", microseconds, "us", time_of("triton", shape, dtype))
            yield from _compared("triton", shape, dtype, FORWARD, ("eager as a CUDA graph", ("eager-graph",), 5))
    yield from _compared("triton", LARGE, "bfloat16", BOTH, ("eager", ("eager",), 5))
    what = f"{_named('triton', LARGE, 'bfloat16', BOTH)}: peak memory below eager's"
    yield Claim(what, 6, None, "x", less_memory("triton", LARGE, "bfloat16", BOTH))
    yield from _compared("triton", LARGE, "bfloat16", FORWARD, ("self-attention", ("attention",), 3))
    yield _at_most("triton: launches of a forward pass", 1, "", most_launches("triton", FORWARD))
    yield _at_most("triton: launches of a forward and backward pass", 3, "", most_launches("triton", BOTH))
    yield from _one_launch()
    for shape in ((128, 64, 16), (64, 128, 16)):
        bounds = ("eager", ("eager",), 3), ("the best compile", COMPILED, 1.5)
        yield from _compared("cuda", shape, "float32", FORWARD, *bounds)
        yield from _compared("cuda", shape, "float32", BOTH, ("eager", ("eager",), 3))
        what = f"{_named('cuda', shape, 'float32', BOTH)}: peak memory below eager's"
        yield Claim(what, 3, None, "x", less_memory("cuda", shape, "float32", BOTH))
    what = "largest error of y - x in float32"
    for provider in ("triton", "cuda"):
        yield _at_most(f"{provider}: {what}, nine shipped shapes", 1e-6, "", worst_error("shipped", provider, FORWARD))
    measure = worst_error("inverse-transform", "reference against float64", FORWARD)
    yield _at_most(f"the reference mixer on the device: {what}", 1e-6, "", measure)


def _one_launch() -> Iterable[Claim]:
    """Of the one-launch kernels of CUDA C++. Of two bounds, the first must be met and the second is aimed at."""
    for dtype, eager, compiled, shares in (("bfloat16", 15, 8, (0.45, 0.65)), ("float32", 10, 6, (0.40, 0.60))):
        named = _named("cuda", LARGE, dtype, FORWARD)
        for share in shares:
            yield Claim(f"{named}: of clone's bandwidth", share, None, "%", of_clone("cuda", LARGE, dtype))
        bounds = ("eager", ("eager",), eager), ("the best compile", COMPILED, compiled)
        yield from _compared("cuda", LARGE, dtype, FORWARD, *bounds)
    for shape, microseconds in ((MIDDLE, 8.0), (SMALL, 6.0)):
        named = _named("cuda", shape, "bfloat16", FORWARD)
        yield _at_most(f"{named}: time", microseconds, "us", time_of("cuda", shape, "bfloat16"))
    named = _named("cuda", LARGE, "bfloat16", BOTH)
    yield Claim(f"{named}: of clone's rate for its bytes", 0.35, None, "%", of_clones_rate("cuda", LARGE, "bfloat16"))
    for size in (16, 32, 64):
        bound = "nvSubquadratic's fused_fft_conv2d", ("fft-conv",), 1.0
        yield from _compared("cuda", (768, size, 8), "bfloat16", FORWARD, bound)
    named = _named("cuda", LARGE, "bfloat16", FORWARD)
    yield _at_most(f"{named}: time with SiLU over ReLU", 1.15, "x", costlier("cuda", LARGE, "bfloat16", "silu", "relu"))
    for shape in (LARGE, MIDDLE, SMALL):
        for than, words in (("triton", "Triton"), ("planned", "cuFFT")):
            for dtype in ("bfloat16", "float32"):
                yield from _compared("cuda", shape, dtype, FORWARD, (words, (than,), 1.0))
    yield _at_most("cuda: launches of a forward pass, up to 32x32", 1, "", most_launches("cuda", FORWARD, 32))


CLAIMS = tuple(_claims())
