"""Measures suites of cases into a CSV file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.cases import Case
from benchmarks.measure import Meter
from benchmarks.providers import COMPILED, FUSED, OTHERS, PROVIDERS
from benchmarks.results import Result, Writer

# Who takes part where nobody says. A copy has no backward pass worth timing.
BY_SUITE: dict[str, tuple[str, ...]] = {
    "headline": ("eager", *FUSED, "clone"),
    "early": ("eager", *FUSED, "clone"),
    "single": ("eager", *FUSED),
    "threads": ("eager", *FUSED),
    "sweep": ("eager", *FUSED, "clone", *OTHERS),
    "mixers": ("eager", *FUSED, "clone", *OTHERS),
    "compiled": ("eager", *FUSED, *COMPILED),
    "shipped": ("eager", *FUSED, "eager-graph", "clone"),
    "large": ("eager", *FUSED, "eager-graph", "clone"),
    "against": ("eager", *FUSED, "clone", *OTHERS),
    "sweep-cuda": ("eager", *FUSED, "clone", *OTHERS),
    "compiled-cuda": ("eager", *FUSED, *COMPILED),
}


def providers_for(case: Case) -> tuple[str, ...]:
    """The providers of a case, the baseline first."""
    names = BY_SUITE.get(case.suite, ("eager", *FUSED, "clone", *OTHERS))
    return tuple(name for name in names if name != "clone" or case.direction == "forward")


def run(
    cases: Iterable[Case],
    out: Path,
    meter: Meter,
    providers: Iterable[str] | None = None,
    deadline: float = float("inf"),  # by time.monotonic
) -> list[Result]:
    """Measure, with a progress bar; every row is in the file before the next is measured."""
    cases = list(cases)
    here = _usable(meter)
    rows: list[Result] = []
    with Writer(out) as writer:
        _write(writer, rows, peak_rate(meter))
        progress = Progress(len(cases))
        for case in cases:
            wanted = tuple(name for name in providers or providers_for(case) if name in here)
            progress.step(f"{case.suite} {case.name} {case.direction} {case.dtype}")
            if time.monotonic() > deadline:
                reason = "the time of this run is spent"
                for name in wanted:
                    _write(writer, rows, meter.row(case, provider=name, status="SKIP", reason=reason))
                continue
            for row in meter.run(case, wanted):
                _write(writer, rows, row)
        progress.close()
    return rows


def _usable(meter: Meter) -> set[str]:
    """Providers that belong to this kind of device; the rest would be rows that say nothing."""
    other = {"cuda": {"cpu"}, "cpu": {"triton", "cuda", "eager-graph", "compile-autotune"}}
    return set(PROVIDERS) - other[meter.device]


def _write(writer: Writer, rows: list[Result], row: Result) -> None:
    writer.write(row)
    rows.append(row)
    if row.status == "FAIL":
        print(f"\nFAIL: {row.provider} on {row.case} {row.dtype} {row.direction}: {row.reason}", file=sys.stderr)


def peak_rate(meter: Meter) -> Result:
    """The fastest matrix product: what the arithmetic units reach at best. On one thread, on a CPU."""
    size = 8192 if meter.device == "cuda" else 768
    a, b = (torch.randn(size, size, device=meter.device) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = min(_timed(lambda: a @ b) for _ in range(40))
    torch.set_num_threads(before)
    case = Case("machine", 1, size, size, size)
    return meter.row(
        case,
        case=f"product of {size} x {size} matrices",
        provider="matmul",
        protocol="fastest of 40",
        input="random",
        p50_us=seconds * 1e6,
        gflop_per_s=2 * size**3 / seconds / 1e9,
        status="OK",
    )


def _timed(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Progress:
    """tqdm's bar where it is installed, else a line now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()
        try:
            from tqdm import tqdm
        except ImportError:
            self._bar = None
        else:
            self._bar = tqdm(total=total, unit="case", dynamic_ncols=True)

    def step(self, what: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(what)
            self._bar.update(int(self._done > 0))
        elif self._done % max(1, self._total // 20) == 0:
            print(f"[{self._done}/{self._total}, {time.monotonic() - self._start:.0f} s] {what}", file=sys.stderr)
        self._done += 1

    def close(self) -> None:
        if self._bar is not None:
            self._bar.update(1)
            self._bar.close()
