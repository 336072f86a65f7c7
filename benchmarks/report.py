"""Turns CSV files into a Markdown report and pictures; it measures nothing and needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import network_tables, tables
from benchmarks.gpu_run import tables as gpu_tables
from benchmarks.plots import draw
from benchmarks.results import UNTIMED, Result, newest, read
from benchmarks.tables import Rows

STAND_IN = (
    "**THIS IS NOT A GPU RUN.** It is a rehearsal on a CPU that stands in for a GPU: tiny shapes, the same steps. "
    "No number below says anything about a GPU."
)


def summary(rows: Rows) -> str:
    """The tables a terminal shows after a run."""
    sweeps = [suite for suite in rows.timed_suites() if suite.startswith("sweep")]
    parts = [
        tables.fused_table(rows),
        tables.cliffs_table(rows),
        tables.relative_table(rows),
        tables.mixers_table(rows, sweeps, lambda row: row.p50_us, tables.microseconds),
        tables.growth_table(rows),
        "\n".join(tables.headlines(rows)),
        "\n".join(network_tables.headlines(rows)),
        "\n".join(tables.failures(rows.all)),
        network_tables.all_tables(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def csv_files(sources: Sequence[Path]) -> list[Path]:
    """The CSV files among, and directly in, some paths.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [file for path in sources for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    if not found or not all(file.is_file() for file in found):
        named = ", ".join(map(str, sources))
        raise FileNotFoundError(f"report: expected CSV files of results, got none in {named}; python -m benchmarks run")
    return found


def write(sources: Sequence[Path], folder: Path, pictures: bool = True) -> list[Path]:
    """report.md and pictures in `folder`, from CSV files or folders of them; the paths that were written."""
    rows = Rows(newest(read(csv_files(sources))))
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(rows, folder, note(rows.all)) if pictures else []
    path = folder / "report.md"
    path.write_text(text(rows, [picture.name for picture in drawn]))
    return [path, *drawn]


def text(rows: Rows, pictures: Sequence[str]) -> str:
    """The report in Markdown."""
    rehearsal = any(row.device_type == "stand-in" for row in rows.all)
    on_gpu = any(row.device_type in ("cuda", "stand-in") for row in rows.all)
    suites = rows.timed_suites()
    sections = (
        ("Steps", gpu_tables.steps(rows)),
        ("Asked, measured, met", gpu_tables.claims(rows) if on_gpu else ""),
        ("Ceilings of the device", gpu_tables.ceilings(rows)),
        ("First contact: each backend against float64", gpu_tables.contact(rows)),
        ("The inverse transform", gpu_tables.inverse_transform(rows)),
        ("Launches", gpu_tables.launches(rows)),
        ("The networks, end to end", network_tables.speeds(rows)),
        ("The networks with other mixers", network_tables.mixers(rows)),
        ("The networks' size", network_tables.sizes(rows)),
        ("Fused against eager", tables.fused_table(rows)),
        ("Awkward sizes against eager", tables.cliffs_table(rows)),
        ("Activations, types, threads and the call around the kernel", tables.relative_table(rows)),
        ("Growth with the number of tokens", tables.growth_table(rows)),
        ("Time of a call, µs", tables.mixers_table(rows, suites, lambda row: row.p50_us, tables.microseconds)),
        (
            "Peak extra memory of a call, MiB",
            tables.mixers_table(rows, suites, lambda row: row.peak_bytes / 2**20, lambda mib: f"{mib:.1f}"),
        ),
        ("Wrong, and therefore not timed", "\n".join(f"- {line}" for line in tables.failures(rows.all))),
        ("Not measured", "\n".join(f"- {line}" for line in tables.skips(rows.all))),
    )
    parts = [
        "# NOT A GPU RUN" if rehearsal else "# How fast the mixer is",
        STAND_IN if rehearsal else "",
        note(rows.all),
        "\n".join(f"- {line}" for line in (*tables.headlines(rows), *network_tables.headlines(rows))),
    ]
    for title, body in sections:
        if body:
            parts += [f"## {title}", body]
            parts += [tables.SWEEP_NOTE] if title.startswith("Growth") else []
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def note(rows: Sequence[Result]) -> str:
    """Where, with what and on what the rows were measured."""
    runs = dict.fromkeys((r.device, r.torch, r.triton, r.package, r.commit) for r in rows if r.device)
    timed = [row for row in rows if row.suite not in UNTIMED]
    said = [
        f"{device}; torch {torch}, triton {triton}, affnet_kernels {package} at {commit}"
        for device, torch, triton, package, commit in runs
    ]
    said += [f"input: {' and '.join(found)}"] if (found := sorted({row.input for row in timed} - {""})) else []
    said += ["SiLU where no activation is named"] if any(row.activation == "silu" for row in timed) else []
    return "; ".join(said)
