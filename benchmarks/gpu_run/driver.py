"""Runs each step of `make gpu` in its own process and time limit; rows that a step has written stay if it is killed.

This process imports no torch, so that nothing a step does to the driver or its memory can end the other steps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks import report
from benchmarks.environment import UNKNOWN, commit
from benchmarks.gpu_run.plan import PLAN, TOTAL, Step
from benchmarks.results import Result, Writer, blank, read

SKIPPED = 77  # exit status of a step that could not run here
UNUSABLE = 78  # exit status of a step that found the machine unusable: no other step is run
MARGIN = 4.0  # seconds before its limit at which a step is asked to be done
PATIENCE = 3.0  # times a step's limit that it may take in a rehearsal, on a CPU that others may be using


class Job(NamedTuple):
    """A step as a process; its last line of output is its outcome."""

    name: str
    seconds: float  # at most
    command: tuple[str, ...]


def jobs(out: Path, stand_in: bool) -> list[Job]:
    rest = ("--stand-in",) if stand_in else ()
    only_here = (Step("stub-driver", "Triton's JIT and launcher on a stub of the driver", 100, "stub_driver"),)
    return [
        Job(
            step.name,
            step.seconds * (PATIENCE if stand_in else 1),
            (sys.executable, "-m", "benchmarks.gpu_run.steps", step.program, str(out), *step.arguments, *rest),
        )
        for step in (*PLAN, *(only_here if stand_in else ()))
    ]


def main(out: Path, stand_in: bool, total: float = TOTAL) -> int:
    """0 if no step failed, 1 if one did, 2 if this machine cannot run them."""
    known = commit()
    print(f"commit: {known}")
    if known == UNKNOWN:
        print(
            "neither git nor a file COMMIT says which commit this is, so the results could not be kept as evidence; "
            "run `make commit-file` in the checkout before the tree is copied",
            flush=True,
        )
    if importlib.util.find_spec("torch") is None:
        print(
            f"make gpu: expected {sys.executable} to have torch, got none; use the python3 that has it", file=sys.stderr
        )
        return 2
    if stand_in:
        os.environ["TRITON_INTERPRET"] = "1"
        total *= PATIENCE
    return run(jobs(out, stand_in), out, total)


def run(todo: Sequence[Job], out: Path, total: float = TOTAL, write_report: bool = True) -> int:
    """Run all jobs, whether or not one fails; 0 if none failed. The last lines give each outcome."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the job is ended too
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total
    outcomes: list[Result] = []
    with (out / "log").open("a") as log:
        for job in todo:
            seconds = min(job.seconds, end - time.monotonic())
            print(f"== {job.name}, at most {max(seconds, 0):.0f} s", flush=True)
            outcome = _run_job(job, seconds, log)
            if outcome.status == "STOP":
                print(outcome.reason, file=sys.stderr)
                return 2
            outcome = _with_facts(outcome, out / "results.csv")
            with Writer(out / "results.csv") as writer:
                writer.write(outcome)
            outcomes.append(outcome)
            if write_report:
                _report(out, log, pictures=job is todo[-1])
    print(f"\nresults: {out / 'results.csv'}\nlog:     {out / 'log'}\nreport:  {out / 'report.md'}\n")
    for outcome in outcomes:
        print(f"{outcome.status:<5} {outcome.case:<18} {outcome.p50_us / 1e6:>5.0f} s  {outcome.reason}")
    failed = [outcome.case for outcome in outcomes if outcome.status == "FAIL"]
    print(f"FAILED: {', '.join(failed)}" if failed else "every step passed or was skipped for the reason it gives")
    return int(bool(failed))


def _run_job(job: Job, seconds: float, log: IO[str]) -> Result:
    if seconds <= 1:
        return blank(suite="step", case=job.name, status="SKIP", reason="no time was left", p50_us=0.0)
    log.write(f"\n== {job.name}: {' '.join(job.command)}\n")
    log.flush()
    mark = log.tell()
    start = time.monotonic()
    settings = os.environ | {"AFFNET_UNTIL": str(time.time() + seconds - MARGIN), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=settings)
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
    elif code in (0, SKIPPED, UNUSABLE):
        status, reason = {0: "OK", SKIPPED: "SKIP", UNUSABLE: "STOP"}[code], last
    else:
        status, reason = "FAIL", f"exit status {code}: {last}"
    return blank(suite="step", case=job.name, status=status, reason=reason, p50_us=took * 1e6)


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
    """The outcome, with device, versions and commit from the rows that are already in the file."""
    try:
        rows = [row for row in read([path]) if row.device]
    except (OSError, ValueError):
        rows = []
    names = ("device", "device_type", "torch", "triton", "package", "commit", "date")
    known = {name: getattr(rows[-1], name) for name in names} if rows else {}
    values = {name: getattr(outcome, name) for name in ("suite", "case", "status", "reason", "p50_us")}
    return blank(**(known | values))


def _report(out: Path, log: IO[str], pictures: bool) -> None:
    try:
        report.write([out], out, pictures=False)
    except Exception as error:  # the rows are on the disk: a report can be made of them later
        log.write(f"no report could be written: {type(error).__name__}: {error}\n")
    if pictures:
        command = (sys.executable, "-m", "benchmarks", "report", str(out))
        try:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            log.write("the pictures took more than half a minute and were given up\n")
