"""The committed results of GPUs, and README's table made of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Result, Writer, newest, read
from benchmarks.tables import FUSED, Rows, markdown, microseconds, times

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- gpu-results:begin -->", "<!-- gpu-results:end -->"
NONE = "No GPU has been measured yet: nothing here is a claim about the speed of a GPU."


def keep(source: Path, folder: Path = RESULTS) -> Path:
    """Append a GPU run's rows to the file of its device.

    Raises:
        ValueError: the run was not on a GPU, its sources were not those of a commit, or the commit is there already.
    """
    rows = [row for row in read([source]) if row.device]
    if not rows or any(row.device_type != "cuda" for row in rows):
        raise ValueError(f"keep: expected the results of a CUDA device, got {sorted({r.device_type for r in rows})}")
    commits = {row.commit for row in rows}
    if any(commit == "unknown" or commit.endswith("+changes") for commit in commits):
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


def block(folder: Path = RESULTS) -> str:
    """What belongs between the markers: a table for each GPU, of its newest commit; or that there is none."""
    tables = []
    for path in sorted(folder.glob("*.csv")):
        rows = [row for row in read([path]) if row.device_type == "cuda"]
        if rows:
            tables.append(_table([row for row in rows if row.commit == rows[-1].commit]))
    return "\n\n".join(tables) or NONE


def _table(rows: Sequence[Result]) -> str:
    looked_up = Rows(newest(rows))
    found = [row for row in looked_up.good("shipped", FUSED, batch=64) if row.dtype in ("float32", "bfloat16")]
    found += looked_up.good("large", FUSED)

    def cells(row: Result) -> list[str]:
        eager, clone = looked_up.beside(row, "eager"), looked_up.beside(row, "clone", "forward")
        return [
            f"{row.case}, B={row.batch}, {row.dtype}, {row.direction}",
            row.provider,
            microseconds(row.p50_us),
            f"{microseconds(row.p20_us)}-{microseconds(row.p80_us)}",
            times(eager.p50_us / row.p50_us) if eager else "-",
            f"{row.gb_per_s / clone.gb_per_s:.0%}" if clone else "-",
        ]

    first = rows[0]
    header = ["case", "backend", "device µs", "p20-p80", "eager / fused", "of clone"]
    return (
        f"{first.device}, commit {first.commit}, torch {first.torch}, triton {first.triton}, {first.date} UTC; "
        f"median device times, cold cache, `make gpu OUT=dir`:\n\n{markdown(header, map(cells, found))}"
    )


def update_readme(
    check: bool = False,
    readme: Path = ROOT / "README.md",
    folder: Path = RESULTS,
) -> int:
    """Put `block` between README's markers; with `check`, only say whether it is there: 0 if so, else 1.

    Raises:
        ValueError: README has no such markers.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"readme: expected {BEGIN} and {END} once each in {readme.name}, got neither or several")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{block(folder)}\n{END}{after}"
    if check:
        if wanted != text:
            print("README's table of GPU results is not that of benchmarks/results; make gpu-table", file=sys.stderr)
        return int(wanted != text)
    readme.write_text(wanted)
    return 0
