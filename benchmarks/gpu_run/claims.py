"""What is asked of the mixer on a GPU, as data, and what was measured."""

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
        """The fastest of some providers."""
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


def most_launches(provider: str, direction: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        counted = [r for r in rows.rows if (r.suite, r.provider, r.direction) == ("launches", provider, direction)]
        return max((row.launches for row in counted if row.device_type == "cuda" and row.launches > 0), default=None)

    return measure


def worst_error(suite: str, provider: str, direction: str) -> Measure:
    def measure(rows: Lookup) -> float | None:
        wanted = (suite, provider, direction, "float32")
        return max(
            (row.error for row in rows.rows if (row.suite, row.provider, row.direction, row.dtype) == wanted),
            default=None,
        )

    return measure


def _claims() -> tuple[Claim, ...]:
    claims = []

    def add(
        what: str, unit: str, measure: Measure, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        claims.append(Claim(what, at_least, at_most, unit, measure))

    large = (128, 32, 64)
    for dtype, eager, compiled, share in (("float32", 6, 3, 0.20), ("bfloat16", 10, 4, 0.25)):
        name = f"triton, 128@32x32, B=64, {dtype}, forward"
        add(f"{name}: speed against eager", "x", faster("triton", ("eager",), large, dtype, FORWARD), eager)
        add(f"{name}: against the best compile", "x", faster("triton", COMPILED, large, dtype, FORWARD), compiled)
        add(f"{name}: of clone's bandwidth", "%", of_clone("triton", large, dtype), share)
    for shape, microseconds in (((256, 16, 64), 12.0), ((320, 8, 64), 8.0)):
        for dtype in ("float32", "bfloat16"):
            name = f"triton, {shape[0]}@{shape[1]}x{shape[1]}, B=64, {dtype}, forward"
            add(f"{name}: time", "us", time_of("triton", shape, dtype), at_most=microseconds)
            add(
                f"{name}: against eager as a CUDA graph",
                "x",
                faster("triton", ("eager-graph",), shape, dtype, FORWARD),
                5,
            )
    name = "triton, 128@32x32, B=64, bfloat16, forward+backward"
    add(f"{name}: speed against eager", "x", faster("triton", ("eager",), large, "bfloat16", BOTH), 5)
    add(f"{name}: peak memory below eager's", "x", less_memory("triton", large, "bfloat16", BOTH), 6)
    name = "triton, 128@32x32 (1,024 tokens), B=64, bfloat16, forward"
    add(f"{name}: against self-attention", "x", faster("triton", ("attention",), large, "bfloat16", FORWARD), 3)
    add("triton: launches of a forward pass", "", most_launches("triton", FORWARD), at_most=1)
    add("triton: launches of a forward and backward pass", "", most_launches("triton", BOTH), at_most=3)
    for shape in ((128, 64, 16), (64, 128, 16)):
        name = f"cuda, {shape[0]}@{shape[1]}x{shape[1]}, B=16, float32"
        add(f"{name}, forward: speed against eager", "x", faster("cuda", ("eager",), shape, "float32", FORWARD), 3)
        add(f"{name}, forward: against the best compile", "x", faster("cuda", COMPILED, shape, "float32", FORWARD), 1.5)
        add(
            f"{name}, forward+backward: speed against eager", "x", faster("cuda", ("eager",), shape, "float32", BOTH), 3
        )
        add(f"{name}, forward+backward: peak memory below eager's", "x", less_memory("cuda", shape, "float32", BOTH), 3)
    for provider in ("triton", "cuda"):
        add(
            f"{provider}: largest error of y - x in float32, nine shipped shapes",
            "",
            worst_error("shipped", provider, FORWARD),
            at_most=1e-6,
        )
    add(
        "the reference mixer on the device: largest error of y - x in float32",
        "",
        worst_error("inverse-transform", "reference against float64", FORWARD),
        at_most=1e-6,
    )
    return tuple(claims)


CLAIMS = _claims()
