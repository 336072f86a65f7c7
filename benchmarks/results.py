"""A measurement as a row of a CSV file."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TextIO


@dataclasses.dataclass(frozen=True)
class Result:
    """One row. The order of the fields is the CSV header. Old files must stay readable, so fields are only appended."""

    device: str  # as its maker calls it
    device_type: str  # "cpu", "cuda", or "stand-in": a CPU that plays the part of a GPU in a rehearsal
    torch: str
    triton: str
    package: str
    commit: str  # with "+changes" where the sources differed
    date: str  # UTC
    threads: int
    input: str  # "photographs" or "random"
    suite: str
    case: str
    batch: int
    channels: int
    height: int
    width: int
    dtype: str
    direction: str  # "forward" or "forward+backward"
    provider: str
    protocol: str  # how it was timed, see timing.py
    samples: int
    p20_us: float  # of the time of one call: on a GPU the device's time, without gaps between launches
    p50_us: float
    p80_us: float
    call_p20_us: float  # of one call from Python until its result is there, launches included
    call_p50_us: float
    call_p80_us: float
    baseline: str  # what the ratios compare with: a provider, or the field of the case that differed
    ratio_p20: float  # of (baseline's time) / (its time), pair by pair where the protocol is paired
    ratio_p50: float
    ratio_p80: float
    peak_bytes: int  # allocated by one call at most, result included, inputs not
    gb_per_s: float  # the bytes that the call must move, over p50
    gflop_per_s: float  # the operations that the call must do, over p50
    launches: int
    error: float  # relative L2 against float64: of y - x for float32 and up, else of y; the worst gradient if larger
    clocks: str  # SM MHz before > after
    status: str  # "OK", "FAIL" or "SKIP"
    reason: str  # of a status that is not OK; of an automatic choice, what was chosen
    activation: str


FIELDS = tuple(field.name for field in dataclasses.fields(Result))
_TYPES = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in dataclasses.fields(Result)}
KEY = (
    "suite",
    "case",
    "batch",
    "channels",
    "height",
    "width",
    "dtype",
    "direction",
    "threads",
    "provider",
    "activation",
)
# Suites whose rows are no timings of a provider: they have tables of their own.
UNTIMED = ("machine", "step", "warm", "contact", "launches", "inverse-transform", "sanitizer")
_FIRST_FIELDS = FIELDS[:-1]  # of the first files, in which every mixer used ReLU


def key(row: Result) -> tuple[object, ...]:
    """What was measured: two rows with one key are two measurements of the same thing."""
    return tuple(getattr(row, name) for name in KEY)


def blank(**values: object) -> Result:
    """A row with `values`, and everything else empty."""
    empty: dict[str, object] = {"int": 0, "float": float("nan"), "str": ""}
    defaults = {field.name: empty[str(field.type)] for field in dataclasses.fields(Result)}
    return Result(**(defaults | values))  # type: ignore[arg-type]


class Writer:
    """Appends rows to a CSV file, each complete on the disk before the next is measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text() if path.exists() else ""
        if old and (not old.startswith(",".join(FIELDS)) or not old.endswith("\n")):
            rows = read([path])  # of an older header, or with a last line that was cut off: write the file anew
            path.unlink()
            with Writer(path) as writer:
                for row in rows:
                    writer.write(row)
        self._file: TextIO = path.open("a", newline="")
        self._writer = csv.writer(self._file)
        if not old:
            self._writer.writerow(FIELDS)
            self._file.flush()

    def write(self, row: Result) -> None:
        values = dataclasses.astuple(row)
        self._writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in values)
        self._file.flush()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read(paths: Iterable[Path]) -> list[Result]:
    """All rows of some CSV files, in order. A last line that a killed run left unfinished is dropped.

    Raises:
        ValueError: a file's header is not the one of `Result`, or a row of it is broken.
    """
    rows = []
    for path in paths:
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        lines = list(csv.reader(whole.splitlines()))
        if not lines:
            continue
        names = tuple(lines[0])
        if names not in (FIELDS, _FIRST_FIELDS):
            raise ValueError(f"read: expected the columns {', '.join(FIELDS)} in {path}, got {', '.join(names)}")
        for number, values in enumerate(lines[1:], 2):
            if len(values) != len(names):
                raise ValueError(f"read: expected {len(names)} values in line {number} of {path}, got {len(values)}")
            row = {"activation": "relu"} | dict(zip(names, values, strict=True))
            rows.append(Result(**{name: _TYPES[name](value) for name, value in row.items()}))
    return rows


def newest(rows: Iterable[Result]) -> list[Result]:
    """The last row of every key, in the order of the first."""
    return list({key(row): row for row in rows}.values())
