"""Tables of results, in Markdown that reads well on a terminal too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import geometric_mean

from benchmarks.cases import COMPILED, FUSED, PASSES
from benchmarks.growth import UPPER_PART, exponents
from benchmarks.results import UNTIMED, Result

NAMES = {
    "cpu": "fused (cpu)",
    "triton": "fused (triton)",
    "cuda": "fused (cuda)",
    "planned": "fused (cuda, by cuFFT)",
    "auto": "fused (automatic)",
    "kernel": "kernel alone",
    "eager": "eager reference",
    "eager-graph": "eager, CUDA graph",
    "compile": "torch.compile",
    "compile-autotune": "torch.compile, max-autotune",
    "compile-complex": "torch.compile, complex wrapper",
    "attention": "self-attention",
    "attention-flash": "self-attention, flash",
    "depthwise": "depthwise convolution",
    "token-mlp": "token-mixing MLP",
    "fft-conv": "nvSubquadratic FFT convolution",
    "clone": "clone",
    "official": "official",
    "official-graph": "official, CUDA graph",
    "compiled": "official, torch.compile",
    "fused": "fused mixer",
    "fused-channels-last": "fused mixer, channels last",
    "fused-compiled": "fused mixer, torch.compile",
    "fused-inference": "fused for inference",
    "fused-inference-graph": "fused for inference, CUDA graph",
    "with-attention": "with self-attention",
    "with-large-kernel": "with depthwise convolution",
    "with-mlp": "with token-mixing MLP",
}
RELATIVE = ("activations", "dtypes", "overhead", "threads", "activations-cuda", "dtypes-cuda")


def markdown(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: int = 1,  # how many columns, the first ones, hold words and not numbers
) -> str:
    """A Markdown table with aligned columns; empty without rows."""
    lines = [list(header), *(list(row) for row in rows)]
    if len(lines) == 1:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = "".join(
        f"{'-' * (width + 2)}|" if column < words else f"{'-' * (width + 1)}:|" for column, width in enumerate(widths)
    )
    return "\n".join([line(lines[0]), f"|{rule}", *(line(cells) for cells in lines[1:])])


def microseconds(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times(value: float) -> str:
    return f"{value:.2f}x" if math.isfinite(value) else "-"


def label(row: Result, *more: str) -> str:
    """What was measured, in words; the activation is named where it is not the headline's SiLU."""
    activation = (row.activation,) if row.activation not in ("silu", "") else ()
    return ", ".join((row.case, f"B={row.batch}", row.dtype, *activation, row.direction, *more))


class Rows:
    """Results, looked up by what they measured."""

    def __init__(self, rows: Iterable[Result]) -> None:
        self.all = list(rows)
        self._by = {self._key(row, row.provider): row for row in self.all}

    @staticmethod
    def _key(row: Result, provider: str) -> tuple[object, ...]:
        return row.suite, row.case, row.batch, row.dtype, row.activation, row.direction, row.threads, provider

    def beside(self, row: Result, provider: str, direction: str | None = None) -> Result | None:
        """Another provider's good row for the same case, or for its other pass."""
        if direction is not None:
            row = replace(row, direction=direction)
        found = self._by.get(self._key(row, provider))
        return found if found is not None and found.status == "OK" else None

    def good(self, suite: str, providers: Iterable[str] | None = None, **want: object) -> list[Result]:
        return [
            row
            for row in self.all
            if row.suite == suite
            and row.status == "OK"
            and (providers is None or row.provider in providers)
            and all(getattr(row, name) == value for name, value in want.items())
        ]

    def timed_suites(self) -> list[str]:
        """Those that time mixers; the networks have tables of their own."""
        suites = dict.fromkeys(row.suite for row in self.all)
        return [suite for suite in suites if suite not in UNTIMED and not suite.startswith("networks")]


def fused_table(rows: Rows) -> str:
    """Fused against eager: a line for each case, pass and backend, from the first suite that has it."""
    found: dict[str, Result] = {}
    for suite in rows.timed_suites():
        if suite != "cliffs" and not suite.startswith("sweep"):
            for row in rows.good(suite, FUSED):
                if rows.beside(row, "eager"):
                    found.setdefault(label(row, row.provider), row)

    def cells(name: str, row: Result) -> list[str]:
        eager, clone = rows.beside(row, "eager"), rows.beside(row, "clone", "forward")
        return [
            name,
            microseconds(eager.p50_us) if eager else "-",
            microseconds(row.p50_us),
            f"{microseconds(row.p20_us)}-{microseconds(row.p80_us)}",
            times(row.ratio_p50),
            f"{row.ratio_p20:.1f}-{row.ratio_p80:.1f}" if math.isfinite(row.ratio_p50) else "-",
            f"{row.gb_per_s / clone.gb_per_s:.0%}" if clone else "-",
            times(eager.peak_bytes / row.peak_bytes) if eager and row.peak_bytes else "-",
            f"{row.error:.0e}",
        ]

    header = ["case", "eager µs", "fused µs", "p20-p80", "speed-up", "p20-p80", "of clone", "memory", "error"]
    return markdown(header, (cells(name, row) for name, row in found.items()))


def mixers_table(
    rows: Rows, suites: Sequence[str], value: Callable[[Result], float], text: Callable[[float], str]
) -> str:
    """One number for each provider (across) and case (down)."""
    found = [row for suite in suites for row in rows.good(suite)]
    names = [name for name in NAMES if any(row.provider == name for row in found)]
    table: dict[str, dict[str, str]] = {}
    for row in found:
        table.setdefault(label(row), {})[row.provider] = text(value(row))
    lines = ([case, *(numbers.get(name, "-") for name in names)] for case, numbers in table.items())
    return markdown(["case", *(NAMES[name] for name in names)], lines)


def relative_table(rows: Rows) -> str:
    """Each backend against itself with one thing changed: ReLU, float32, one thread, or no public call around it."""
    found = [row for suite in RELATIVE for row in rows.good(suite, FUSED) if row.baseline not in ("eager", "")]
    lines = (
        [
            label(row, NAMES[row.provider], *([f"{row.threads} threads"] if row.threads > 1 else [])),
            row.baseline,
            microseconds(row.p50_us),
            f"{1 / row.ratio_p50:.2f}",
            f"{1 / row.ratio_p80:.2f}-{1 / row.ratio_p20:.2f}",
            microseconds(row.p50_us * (1 - row.ratio_p50)) if row.baseline == "kernel" else "-",
        ]
        for row in found
        if math.isfinite(row.ratio_p50)
    )
    return markdown(["case", "baseline", "µs", "time / baseline's", "p20-p80", "overhead, µs"], lines)


def cliffs_table(rows: Rows) -> str:
    """Times as fast as eager, of the automatic choice and of backend "cpu"; what is slower is marked."""

    def cells(row: Result) -> list[str]:
        cpu = rows.beside(row, "cpu")
        ratios = [("automatic", row.ratio_p50), ("cpu", cpu.ratio_p50 if cpu else math.nan)]
        slower = [name for name, ratio in ratios if ratio < 1]
        eager = rows.beside(row, "eager")
        return [
            label(row),
            microseconds(eager.p50_us) if eager else "-",
            row.reason.removeprefix("runs "),
            *(times(ratio) for _, ratio in ratios),
            f"SLOWER: {', '.join(slower)}" if slower else "",
        ]

    header = ["case", "eager µs", "automatic choice", "automatic", 'backend="cpu"', "slower than eager"]
    return markdown(header, map(cells, rows.good("cliffs", ("auto",))))


def growth_table(rows: Rows) -> str:
    """The fitted exponents."""
    lines = (
        [
            f"{NAMES.get(fit.provider, fit.provider)}, {fit.dtype}, {fit.direction}",
            f"N^{fit.exponent:.2f}",
            f"{fit.smallest:,}-{fit.largest:,}",
            str(fit.points),
        ]
        for fit in sorted(exponents(rows.all), key=lambda fit: (fit.direction, fit.dtype, fit.exponent))
    )
    return markdown(["mixer", "time grows as", "tokens N of the fit", "points"], lines)


def headlines(rows: Rows) -> list[str]:
    """Sentences with the figures that matter most."""
    tried = [row for row in rows.all if row.provider in FUSED and row.suite not in UNTIMED]
    if tried and not any(row.status == "OK" for row in tried):
        return [f"No fused backend ran: {tried[0].reason}."]
    parts = (speedups, against_plain, _single, _overheads, _relative, two_threads, cliffs, memory, growth, _arithmetic)
    return [sentence for part in parts for sentence in part(rows)]


def speedups(rows: Rows) -> list[str]:
    said = []
    for suite, what in (("headline", ""), ("relu", " with ReLU"), ("shipped", "")):
        for direction in PASSES:
            for provider in FUSED:
                found = rows.good(suite, (provider,), direction=direction)
                if ratios := [row.ratio_p50 for row in found if math.isfinite(row.ratio_p50)]:
                    said.append(
                        f"{NAMES[provider]}{what}, {direction}: {geometric_mean(ratios):.2f}x eager, geometric mean "
                        f"over {len(ratios)} cases (lowest {min(ratios):.2f}x, highest {max(ratios):.2f}x)."
                    )
    return said


def against_plain(rows: Rows) -> list[str]:
    """The fastest that PyTorch makes of the formula, case by case."""
    said = []
    for suite in ("compiled", "compiled-cuda", "autotuned-cuda"):
        for direction in PASSES:
            ratios, names = [], set()
            for row in rows.good(suite, FUSED, direction=direction):
                others = [other for name in ("eager", *COMPILED, "eager-graph") if (other := rows.beside(row, name))]
                names |= {NAMES[other.provider] for other in others}
                ratios += [min(other.p50_us for other in others) / row.p50_us] if others else []
            if ratios:
                said.append(
                    f"Against the best of {', '.join(sorted(names))}, {direction}: {geometric_mean(ratios):.2f}x, "
                    f"geometric mean over {len(ratios)} cases."
                )
    return said


def _single(rows: Rows) -> list[str]:
    said = []
    for row in rows.good("single", FUSED):
        others = [(NAMES[name], other) for name in ("attention", "token-mlp") if (other := rows.beside(row, name))]
        beside = "".join(f", {other.p50_us / row.p50_us:.2f}x {name}" for name, other in others)
        said.append(f"Batch 1, {row.case}, {row.direction}: {row.ratio_p50:.2f}x eager{beside} ({row.p50_us:.0f} µs).")
    return said


def _overheads(rows: Rows) -> list[str]:
    return [
        f"Call overhead above the kernel, batch 1, {row.case}, {row.direction}: "
        f"{row.p50_us * (1 - row.ratio_p50):.0f} µs of {row.p50_us:.0f} µs."
        for row in rows.good("overhead", FUSED)
    ]


def _relative(rows: Rows) -> list[str]:
    said = []
    for suite, field in (("activations", "activation"), ("dtypes", "dtype")):
        found = [row for row in rows.good(suite, FUSED) if "=" in row.baseline]
        for value, direction in dict.fromkeys((getattr(row, field), row.direction) for row in found):
            same = [row for row in found if (getattr(row, field), row.direction) == (value, direction)]
            ratios = [1 / row.ratio_p50 for row in same]
            said.append(
                f"{value}, {direction}: {geometric_mean(ratios):.2f} times the time of "
                f"{same[0].baseline.split('=')[1]} (highest {max(ratios):.2f})."
            )
    return said


def two_threads(rows: Rows) -> list[str]:
    return [
        f"Two threads, B={row.batch}, {row.case}, {row.direction}: {row.ratio_p50:.2f}x one thread."
        for row in rows.good("threads", FUSED, threads=2)
    ]


def cliffs(rows: Rows) -> list[str]:
    found = rows.good("cliffs", ("auto",))
    slower = [f"{row.case} {row.direction} ({row.ratio_p50:.2f}x)" for row in found if row.ratio_p50 < 1]
    if not found:
        return []
    named = f": {', '.join(slower)}" if slower else ""
    return [f"Awkward sizes: automatic choice is slower than eager on {len(slower)} of {len(found)}{named}."]


def memory(rows: Rows) -> list[str]:
    pairs = [(row, rows.beside(row, "eager")) for row in rows.good("threads", FUSED, threads=1)]
    return [
        f"Peak extra memory, B={row.batch}, {row.case}, {row.direction}: {row.peak_bytes / 2**20:.1f} MiB, "
        f"1/{eager.peak_bytes / row.peak_bytes:.1f} of eager's {eager.peak_bytes / 2**20:.1f} MiB."
        for row, eager in pairs
        if eager and row.peak_bytes
    ]


def growth(rows: Rows) -> list[str]:
    fits = [fit for fit in exponents(rows.all) if fit.direction == "forward" and fit.provider != "clone"]
    if not fits:
        return []
    powers = ", ".join(f"{NAMES[fit.provider]} N^{fit.exponent:.2f}" for fit in sorted(fits, key=lambda f: f.exponent))
    return [f"Growth of the forward time with N tokens, from N = {UPPER_PART:,}: {powers}."]


def _arithmetic(rows: Rows) -> list[str]:
    peaks = [row.gflop_per_s for row in rows.good("machine", ("matmul",))]
    rates = [row.gflop_per_s for row in rows.good("headline", ("cpu",), direction="forward")]
    if not (peaks and rates):
        return []
    mean = geometric_mean(rates)
    return [
        f"Useful operations: {mean:.0f} GFLOP/s of the {max(peaks):.0f} GFLOP/s of a matrix product "
        f"({mean / max(peaks):.0%}; {min(rates) / max(peaks):.0%} to {max(rates) / max(peaks):.0%})."
    ]


def failures(rows: Iterable[Result]) -> list[str]:
    return [f"FAIL: {row.suite} {label(row, row.provider)}: {row.reason}" for row in rows if row.status == "FAIL"]


def skips(rows: Iterable[Result]) -> list[str]:
    """What was not measured, grouped by reason."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.status == "SKIP":
            reasons[row.provider, row.reason] = reasons.get((row.provider, row.reason), 0) + 1
    return [f"{provider or 'step'}, {count} times: {reason}" for (provider, reason), count in reasons.items()]


SWEEP_NOTE = (
    f"Least squares on log time (20th percentile) over log N for N >= {UPPER_PART}, "
    "where the cost of a call no longer shows."
)
