"""The tables that only a run of `make gpu` has rows for."""

from __future__ import annotations

from benchmarks.gpu_run.claims import CLAIMS, Lookup, shown
from benchmarks.tables import NAMES, Rows, label, markdown, microseconds


def steps(rows: Rows) -> str:
    found = [row for row in rows.all if row.suite == "step"]
    lines = ([row.case, row.status, f"{row.p50_us / 1e6:.0f}", row.reason.replace("|", "/")] for row in found)
    return markdown(["step", "outcome", "seconds", "what it said"], lines)


def claims(rows: Rows) -> str:
    """A line for each claim; what was not measured on a GPU is neither met nor missed."""
    lookup = Lookup(row for row in rows.all if row.device_type == "cuda")
    lines = []
    for claim in CLAIMS:
        value = claim.measure(lookup)
        met = "not measured on a GPU" if value is None else "met" if claim.met(value) else "NOT MET"
        lines.append([claim.what, claim.asked, shown(value, claim.unit), met])
    return markdown(["claim", "asked", "measured", "verdict"], lines)


def ceilings(rows: Rows) -> str:
    lines = (
        [
            f"{row.provider}, {row.case}",
            f"{row.gb_per_s:,.0f} GB/s" if row.gb_per_s > 0 else f"{row.gflop_per_s / 1e3:,.2f} TFLOP/s",
        ]
        for row in rows.good("machine")
    )
    return markdown(["ceiling", "measured"], lines)


def contact(rows: Rows) -> str:
    """The first forward and backward pass of each backend."""
    lines = (
        [
            label(row, NAMES.get(row.provider, row.provider)),
            row.status,
            f"{row.error:.1e}" if row.error == row.error else "-",
            f"{row.p50_us / 1e6:.1f}" if row.p50_us == row.p50_us else "-",
            row.reason.replace("|", "/"),
        ]
        for row in rows.all
        if row.suite == "contact"
    )
    return markdown(["call", "outcome", "largest error", "seconds of the first call", "why"], lines)


def inverse_transform(rows: Rows) -> str:
    found = [row for row in rows.all if row.suite == "inverse-transform"]
    if not found:
        return ""
    names = list(dict.fromkeys(row.provider for row in found))
    sizes = list(dict.fromkeys(row.height for row in found))
    errors = {(row.height, row.provider): f"{row.error:.1e}" for row in found}
    lines = ([f"{size} x {size}", *(errors.get((size, name), "-") for name in names)] for size in sizes)
    return markdown(["size", *names], lines) + "\n\nRelative L2, float32, on a real masked spectrum."


def launches(rows: Rows) -> str:
    lines = (
        [
            label(row, NAMES.get(row.provider, row.provider)),
            str(row.launches),
            microseconds(row.p50_us),
            f"{row.gb_per_s * row.p50_us / 1e3:.1f}",
            f"{row.gb_per_s:,.0f}",
            row.protocol,
        ]
        for row in rows.good("launches")
    )
    return markdown(["case", "launches", "device µs", "MB to move at least", "GB/s", "counted by"], lines)
