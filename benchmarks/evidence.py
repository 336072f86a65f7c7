"""The committed results of each device, and README's tables made from them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import network_tables, tables
from benchmarks.cases import FUSED
from benchmarks.environment import ROOT, UNKNOWN
from benchmarks.results import Result, Writer, newest, read
from benchmarks.tables import Rows, markdown, microseconds, times

RESULTS = ROOT / "benchmarks" / "results"


class Block(NamedTuple):
    """A part of README that is generated, between the comments `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

    name: str
    device_type: str
    suites: tuple[str, ...]
    how: str
    nothing: str  # what stands there while nothing has been measured

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}:end -->"


BLOCKS = (
    Block(
        "cpu-results",
        "cpu",
        ("headline",),
        "medians of paired single calls on feature maps of photographs, SiLU, `make cpu-table`",
        "No CPU's results have been committed yet; `make bench` measures yours.",
    ),
    Block(
        "gpu-results",
        "cuda",
        ("shipped", "large"),
        "medians of device times with a cold cache, SiLU, `make gpu OUT=dir`",
        "No GPU has been measured yet: nothing here is a claim about the speed of a GPU.",
    ),
)


def keep(source: Path, folder: Path = RESULTS) -> Path:
    """Append a run's rows to the file of its device.

    Raises:
        ValueError: the run was a rehearsal, its sources were not those of a commit, or the commit is there already.
    """
    rows = [row for row in read([source]) if row.device]
    if not rows or any(row.device_type not in ("cpu", "cuda") for row in rows):
        found = sorted({row.device_type for row in rows})
        raise ValueError(f"keep: expected the results of a CPU or a CUDA device, got {found}")
    commits = {row.commit for row in rows}
    if any(commit == UNKNOWN or commit.endswith("+changes") for commit in commits):
        raise ValueError(f"keep: expected the results of a commit, got {sorted(commits)}")
    path = folder / f"{slug(rows[0].device)}.csv"
    there = {row.commit for row in read([path])} if path.exists() else set()
    if there & commits:
        raise ValueError(f"keep: expected a commit that is not in {path.name}, got {sorted(commits)}")
    with Writer(path) as writer:
        for row in rows:
            writer.write(row)
    return path


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def text(block: Block, folder: Path = RESULTS) -> str:
    """What belongs between a block's markers: a table for each device, of its newest commit."""
    tables = []
    for path in sorted(folder.glob("*.csv")):
        rows = [row for row in read([path]) if row.device_type == block.device_type]
        if rows:
            tables.append(_table(block, [row for row in rows if row.commit == rows[-1].commit]))
    return "\n\n".join(tables) or block.nothing


def _table(block: Block, rows: Sequence[Result]) -> str:
    looked_up = Rows(newest(rows))
    found = [row for suite in block.suites for row in looked_up.good(suite, FUSED, direction="forward")]

    def cells(row: Result) -> list[str]:
        numbers = []
        for direction in ("forward", "forward+backward"):
            ours, eager = (looked_up.beside(row, name, direction) for name in (row.provider, "eager"))
            numbers += [
                microseconds(eager.p50_us) if eager else "-",
                microseconds(ours.p50_us) if ours else "-",
                times(ours.ratio_p50) if ours else "-",
            ]
        clone = looked_up.beside(row, "clone")
        share = f"{row.gb_per_s / clone.gb_per_s:.0%}" if clone else "-"
        return [f"{row.case}, B={row.batch}, {row.dtype}, {row.provider}", *numbers, share]

    header = ["channels@map, batch, type, backend", "eager µs", "fused µs", "forward"]
    header += ["eager µs", "fused µs", "with backward", "of clone's bandwidth"]
    parts = (tables.speedups, tables.against_plain, tables.two_threads, tables.memory, tables.cliffs, tables.growth)
    said = [f"- {sentence}" for part in (*parts, network_tables.headlines) for sentence in part(looked_up)]
    first = rows[0]
    versions = f"torch {first.torch}, triton {first.triton}, commit {first.commit}, {first.date} UTC"
    threads = f", {first.threads} thread{'s' * (first.threads > 1)}" if first.device_type == "cpu" else ""
    return (
        f"{first.device}{threads}, {versions}; {block.how}:\n\n{markdown(header, map(cells, found))}\n\n"
        + "\n".join(said)
        + f"\n\n{network_tables.all_tables(looked_up)}"
    ).rstrip()


def update_readme(check: bool = False, readme: Path = ROOT / "README.md", folder: Path = RESULTS) -> int:
    """Write each block's text between its markers in README; with `check`, only compare: 0 if it is there, else 1.

    Raises:
        ValueError: README lacks a block's markers.
    """
    before = wanted = readme.read_text()
    for block in BLOCKS:
        if wanted.count(block.begin) != 1 or wanted.count(block.end) != 1:
            raise ValueError(
                f"readme: expected {block.begin} and {block.end} once each in {readme.name}, got none or several"
            )
        head, rest = wanted.split(block.begin)
        wanted = f"{head}{block.begin}\n{text(block, folder)}\n{block.end}{rest.split(block.end)[1]}"
    if not check:
        readme.write_text(wanted)
    elif wanted != before:
        print("README's tables differ from benchmarks/results; make tables", file=sys.stderr)
        return 1
    return 0
