"""`make gpu`: every step in a process and a time limit of its own, each on the disk as it ends.

This process imports no torch: nothing that a step does to the driver or to its own memory can take the others along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks.results import Result, Writer, blank, read

TOTAL = 530.0  # seconds
SKIPPED = 77  # exit status of a step that could not run here


class Step(NamedTuple):
    name: str
    seconds: float  # at most
    command: tuple[str, ...]


def steps(out: Path, stand_in: bool) -> list[Step]:
    """The steps in the order of what is lost least if the time ends."""

    def step(letter: str, name: str, seconds: float, *options: str) -> Step:
        rest = (str(out), *(("--stand-in",) if stand_in else ()), *options)
        return Step(f"({letter}) {name}", seconds, (sys.executable, "-m", "benchmarks.gpu_run.steps", name, *rest))

    suite = 200.0
    return [
        step("a", "environment", 40),
        step("b", "build", 170),
        step("c", "inverse-transform", 40),
        step("e", "launches", 40),
        step("g", "suite", suite, "--seconds", str(suite - 15)),
        step("d", "tests", 110),
        step("f", "sanitizer", 90),
        step("h", "models", 10),
    ]


def run(
    todo: Sequence[Step],
    out: Path,
    total: float = TOTAL,
    write_report: bool = True,
) -> int:
    """Run the steps whatever becomes of each; 0 if none failed. The last lines say what passed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the step is ended too
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total
    outcomes: list[Result] = []
    with (out / "log").open("a") as log:
        for step in todo:
            seconds = min(step.seconds, end - time.monotonic())
            print(f"== {step.name}, at most {max(seconds, 0):.0f} s", flush=True)
            outcome = _run_step(step, seconds, log)
            outcome = _with_facts(outcome, out / "results.csv")
            with Writer(out / "results.csv") as writer:
                writer.write(outcome)
            outcomes.append(outcome)
            if write_report:
                _report(out, log, pictures=step is todo[-1])
    print(f"\nresults: {out / 'results.csv'}\nlog:     {out / 'log'}\nreport:  {out / 'report.md'}\n")
    for outcome in outcomes:
        print(f"{outcome.status:<5} {outcome.case:<24} {outcome.p50_us / 1e6:>5.0f} s  {outcome.reason}")
    failed = [outcome.case for outcome in outcomes if outcome.status == "FAIL"]
    print(f"FAILED: {', '.join(failed)}" if failed else "every step passed or was skipped for the reason it gives")
    return int(bool(failed))


def _run_step(step: Step, seconds: float, log: IO[str]) -> Result:
    if seconds <= 1:
        return blank(suite="step", case=step.name, status="SKIP", reason="no time was left", p50_us=0.0)
    log.write(f"\n== {step.name}: {' '.join(step.command)}\n")
    log.flush()
    mark = log.tell()
    start = time.monotonic()
    process = subprocess.Popen(step.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        code: int | None = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)  # and whatever it left running, also when this process is interrupted
    took = time.monotonic() - start
    last = _last_line(Path(log.name), mark)
    if code is None:
        status, reason = "FAIL", f"stopped at its limit of {seconds:.0f} s; last said: {last}"
    elif code == SKIPPED:
        status, reason = "SKIP", last
    elif code != 0:
        status, reason = "FAIL", f"exit status {code}: {last}"
    else:
        status, reason = "OK", last
    return blank(suite="step", case=step.name, status=status, reason=reason, p50_us=took * 1e6)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(path: Path, mark: int) -> str:
    with path.open(errors="replace") as file:
        file.seek(mark)
        lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"


def _with_facts(outcome: Result, path: Path) -> Result:
    """The outcome with device, versions and commit of the rows that are already there."""
    try:
        rows = [row for row in read([path]) if row.device]
    except (OSError, ValueError):
        rows = []
    names = ("device", "device_type", "torch", "triton", "package", "commit", "date")
    known = {name: getattr(rows[-1], name) for name in names} if rows else {}
    values = {name: getattr(outcome, name) for name in ("suite", "case", "status", "reason", "p50_us")}
    return blank(**(known | values))


def _report(out: Path, log: IO[str], pictures: bool) -> None:
    options = () if pictures else ("--no-pictures",)
    command = (sys.executable, "-m", "benchmarks", "report", str(out), *options)
    try:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        log.write("the report took more than a minute and was stopped\n")
