"""Measures suites of cases into a CSV file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.cases import SUITES, Case
from benchmarks.measure import Meter
from benchmarks.providers import PROVIDERS
from benchmarks.results import Result, Writer


def run(
    cases: Iterable[Case],
    out: Path,
    meter: Meter,
    providers: Iterable[str] | None = None,  # instead of the suites'
    deadline: float = float("inf"),  # by time.monotonic
) -> list[Result]:
    """Measure, with a progress bar; every row is in the file before the next is measured."""
    cases = list(cases)
    rows: list[Result] = []
    with Writer(out) as writer:

        def write(row: Result) -> None:
            writer.write(row)
            rows.append(row)
            if row.status == "FAIL":
                print(
                    f"\nFAIL: {row.provider} on {row.case} {row.dtype} {row.direction}: {row.reason}", file=sys.stderr
                )

        write(peak_rate(meter))
        progress = Progress(len(cases))
        for case in cases:
            names = tuple(providers or SUITES[case.suite].providers_for(case))
            wanted = tuple(
                name
                for name in names
                if meter.device in PROVIDERS[name].devices and bool(case.network) == (PROVIDERS[name].kind == "network")
            )
            progress.step(f"{case.suite} {case.name} {case.direction} {case.dtype}")
            if time.monotonic() > deadline:
                reason = "the time of this run is spent"
                for name in wanted:
                    write(meter.row(case, provider=name, status="SKIP", reason=reason))
                continue
            # A compilation must not outlast the run.
            meter.compile_seconds = min(meter.compile_seconds, deadline - time.monotonic())
            for row in meter.run(case, wanted):
                write(row)
        progress.close()
    return rows


def peak_rate(meter: Meter) -> Result:
    """The fastest matrix product: what the arithmetic units reach at best. On one thread, on a CPU."""
    size = 8192 if meter.device == "cuda" else 768
    a, b = (torch.randn(size, size, device=meter.device) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = meter.fastest(lambda: a @ b, 40)
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
