"""Tables of results, in Markdown that reads well on a terminal too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from benchmarks.growth import UPPER_PART, exponents
from benchmarks.results import Result

FUSED = ("cpu", "triton", "cuda")
NAMES = {
    "cpu": "fused (cpu)",
    "triton": "fused (triton)",
    "cuda": "fused (cuda)",
    "eager": "eager reference",
    "eager-graph": "eager, CUDA graph",
    "compile": "torch.compile",
    "compile-autotune": "torch.compile, max-autotune",
    "attention": "self-attention",
    "depthwise": "depthwise convolution",
    "token-mlp": "token-mixing MLP",
}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first is text, the others numbers."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join((cells[0].ljust(widths[0]), *rest))} |"

    rule = f"|{'-' * (widths[0] + 2)}|{''.join('-' * (width + 1) + ':|' for width in widths[1:])}"
    return "\n".join([line(lines[0]), rule, *(line(cells) for cells in lines[1:])])


def microseconds(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times(value: float) -> str:
    return f"{value:.2f}x" if math.isfinite(value) else "-"


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


class Rows:
    """Results, looked up by what they measured."""

    def __init__(self, rows: Iterable[Result]) -> None:
        self.all = list(rows)
        self._by = {self._key(row, row.provider): row for row in self.all}

    @staticmethod
    def _key(row: Result, provider: str) -> tuple[object, ...]:
        return row.suite, row.case, row.batch, row.dtype, row.direction, row.threads, provider

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


def fused_table(rows: Rows, suites: Sequence[str]) -> str:
    """Fused against eager: a line for each case, pass and backend, from the first of the suites that has it."""

    def cells(row: Result) -> list[str]:
        eager = rows.beside(row, "eager")
        clone = rows.beside(row, "clone", "forward")
        name = f"{row.case}, B={row.batch}, {row.dtype}, {row.direction}, {row.provider}"
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
    found: dict[tuple[object, ...], Result] = {}
    for suite in suites:
        for row in rows.good(suite, FUSED):
            found.setdefault((row.case, row.batch, row.dtype, row.direction, row.provider), row)
    return markdown(header, map(cells, found.values())) if found else ""


def mixers_table(
    rows: Rows, suites: Sequence[str], value: Callable[[Result], float], text: Callable[[float], str]
) -> str:
    """One number for each provider (across) and case (down)."""
    found = [row for suite in suites for row in rows.good(suite)]
    cases = list(dict.fromkeys((row.suite, row.case, row.batch, row.dtype, row.direction) for row in found))
    names = [name for name in (*NAMES, "clone") if any(row.provider == name for row in found)]
    table: dict[tuple[object, ...], dict[str, str]] = {case: {} for case in cases}
    for row in found:
        table[row.suite, row.case, row.batch, row.dtype, row.direction][row.provider] = text(value(row))
    lines = (
        [
            f"{case}, B={batch}, {dtype}, {direction}",
            *(table[suite, case, batch, dtype, direction].get(n, "-") for n in names),
        ]
        for suite, case, batch, dtype, direction in cases
    )
    return markdown(["case", *(NAMES.get(name, name) for name in names)], lines) if found else ""


def growth_table(rows: Rows) -> str:
    """The fitted exponents."""
    fits = exponents(rows.all)
    if not fits:
        return ""
    lines = (
        [
            f"{NAMES.get(fit.provider, fit.provider)}, {fit.dtype}, {fit.direction}",
            f"N^{fit.exponent:.2f}",
            f"{fit.smallest:,}-{fit.largest:,}",
            str(fit.points),
        ]
        for fit in sorted(fits, key=lambda fit: (fit.direction, fit.dtype, fit.exponent))
    )
    return markdown(["mixer", "time grows as", "tokens N of the fit", "points"], lines)


def headlines(rows: Rows) -> list[str]:
    """Sentences with the figures that matter most."""
    said = []
    directions = ("forward", "forward+backward")
    for direction in directions:
        for provider in FUSED:
            if ratios := [row.ratio_p50 for row in rows.good("headline", (provider,), direction=direction)]:
                mean, low, high = geometric_mean(ratios), min(ratios), max(ratios)
                said.append(
                    f"{NAMES[provider]}, {direction}: {mean:.2f}x eager, geometric mean over {len(ratios)} cases "
                    f"(lowest {low:.2f}x, highest {high:.2f}x)."
                )
    for direction in directions:
        pairs = [(row, rows.beside(row, "compile")) for row in rows.good("compiled", FUSED, direction=direction)]
        ratios = [compiled.p50_us / row.p50_us for row, compiled in pairs if compiled]
        if ratios:
            said.append(
                f"Against torch.compile, {direction}: {geometric_mean(ratios):.2f}x, geometric mean over "
                f"{len(ratios)} cases."
            )
    said += [
        f"Batch 1, {row.case}, {row.direction}: {row.ratio_p50:.2f}x eager ({row.p50_us:.0f} µs)."
        for row in rows.good("single", FUSED)
    ]
    said += [
        f"Two threads, B={row.batch}, {row.case}, {row.direction}: {row.ratio_p50:.2f}x one thread."
        for row in rows.good("threads", FUSED, threads=2)
    ]
    said += _memory(rows) + _arithmetic(rows)
    tried = [row for row in rows.all if row.provider in FUSED]
    if tried and not any(row.status == "OK" for row in tried):
        said.append(f"No fused backend ran: {tried[0].reason}.")
    return said


def _memory(rows: Rows) -> list[str]:
    pairs = [(row, rows.beside(row, "eager")) for row in rows.good("threads", FUSED, threads=1)]
    return [
        f"Peak extra memory, B={row.batch}, {row.case}, {row.direction}: {row.peak_bytes / 2**20:.1f} MiB, "
        f"1/{eager.peak_bytes / row.peak_bytes:.1f} of eager's {eager.peak_bytes / 2**20:.1f} MiB."
        for row, eager in pairs
        if eager and row.peak_bytes
    ]


def _arithmetic(rows: Rows) -> list[str]:
    peaks = [row.gflop_per_s for row in rows.good("machine", ("matmul",))]
    rates = [row.gflop_per_s for row in rows.good("headline", ("cpu",), direction="forward")]
    if not (peaks and rates):
        return []
    return [
        f"Useful operations: {geometric_mean(rates):.0f} GFLOP/s of the {max(peaks):.0f} GFLOP/s of a matrix product "
        f"({geometric_mean(rates) / max(peaks):.0%}; {min(rates) / max(peaks):.0%} to {max(rates) / max(peaks):.0%})."
    ]


def failures(rows: Iterable[Result]) -> list[str]:
    return [
        f"FAIL: {row.provider} on {row.suite} {row.case}, B={row.batch}, {row.dtype}, {row.direction}: {row.reason}"
        for row in rows
        if row.status == "FAIL"
    ]


def skips(rows: Iterable[Result]) -> list[str]:
    """What was not measured, grouped by reason."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.status == "SKIP":
            reasons[row.provider, row.reason] = reasons.get((row.provider, row.reason), 0) + 1
    return [f"{provider}, {count} cases: {reason}" for (provider, reason), count in reasons.items()]


SWEEP_NOTE = (
    f"Least squares on log time (20th percentile) over log N for N >= {UPPER_PART}, "
    "where the cost of a call no longer shows."
)
