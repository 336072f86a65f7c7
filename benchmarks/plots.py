"""Pictures of results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.growth import exponents
from benchmarks.tables import FUSED, NAMES, Rows

COLOURS = {
    "cpu": "#c1272d",
    "triton": "#c1272d",
    "cuda": "#e8833a",
    "eager": "#3a6ea5",
    "compile": "#6baed6",
    "eager-graph": "#9ecae1",
    "clone": "#999999",
    "attention": "#2e8b57",
    "depthwise": "#8856a7",
    "token-mlp": "#b8860b",
}
MARKERS = dict(zip(COLOURS, "oosD^vx^Ps", strict=True))


def draw(rows: Rows, folder: Path, note: str) -> list[Path]:
    """Every picture there are results for; none, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130})
    written = []
    for name, picture in (("complexity", complexity), ("speedup", speedup), ("roofline", roofline)):
        figure = picture(plt, rows)
        if figure is None:
            continue
        figure.text(0.01, 0.005, note, fontsize=7.5, color="#555555")
        path = folder / f"{name}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written


def complexity(plt: Any, rows: Rows) -> Any:
    """Time against tokens, both logarithmic, with the fitted exponents in the legend."""
    sweep = [row for row in rows.all if row.suite.startswith("sweep") and row.status == "OK"]
    if not sweep:
        return None
    dtype = "bfloat16" if any(row.dtype == "bfloat16" for row in sweep) else "float32"
    sweep = [row for row in sweep if row.dtype == dtype]
    fits = {(fit.provider, fit.direction): fit.exponent for fit in exponents(sweep)}
    directions = list(dict.fromkeys(row.direction for row in sweep))
    figure, axes = plt.subplots(1, len(directions), figsize=(6.4 * len(directions), 5), squeeze=False, sharey=True)
    for axis, direction in zip(axes[0], directions, strict=True):
        for name in COLOURS:
            points = sorted(
                (row.height * row.width, row.p50_us)
                for row in sweep
                if (row.provider, row.direction) == (name, direction)
            )
            if not points:
                continue
            exponent = fits.get((name, direction))
            label = NAMES.get(name, name) + (f"  ~ N$^{{{exponent:.2f}}}$" if exponent is not None else "")
            wide = 2.6 if name in FUSED else 1.4
            axis.plot(
                *zip(*points, strict=True), marker=MARKERS[name], color=COLOURS[name], label=label, linewidth=wide
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tokens N = H x W")
        axis.set_title(f"{direction}, {sweep[0].channels} channels, batch {sweep[0].batch}, {dtype}")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=9, frameon=False)
    axes[0][0].set_ylabel("time of a call, µs")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def speedup(plt: Any, rows: Rows) -> Any:
    """Bars: how many times faster than eager, with the spread of the ratios."""
    found = [row for row in rows.all if row.provider in FUSED and row.status == "OK" and math.isfinite(row.ratio_p50)]
    found = [row for row in found if row.suite in ("headline", "early", "shipped")]
    if not found:
        return None
    cases = list(dict.fromkeys((row.case, row.batch, row.dtype) for row in found))
    series = list(dict.fromkeys((row.provider, row.direction) for row in found))
    figure, axis = plt.subplots(figsize=(max(8, 0.8 * len(cases)), 4.6))
    width = 0.8 / len(series)
    for place, (provider, direction) in enumerate(series):
        bars = {
            (row.case, row.batch, row.dtype): row
            for row in found
            if (row.provider, row.direction) == (provider, direction)
        }
        xs = [index + (place - (len(series) - 1) / 2) * width for index, case in enumerate(cases) if case in bars]
        chosen = [bars[case] for case in cases if case in bars]
        low = [max(0.0, row.ratio_p50 - row.ratio_p20) for row in chosen]
        high = [max(0.0, row.ratio_p80 - row.ratio_p50) for row in chosen]
        shade = 1.0 if direction == "forward" else 0.55
        axis.bar(
            xs,
            [row.ratio_p50 for row in chosen],
            width * 0.92,
            yerr=(low, high),
            color=COLOURS[provider],
            alpha=shade,
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
            label=f"{NAMES[provider]}, {direction}",
        )
    axis.axhline(1, color="#3a6ea5", linewidth=1.5, label="eager reference")
    axis.set_xticks(range(len(cases)), [f"{case}\nB={batch}\n{dtype}" for case, batch, dtype in cases], fontsize=8)
    axis.set_ylabel("times faster than eager")
    axis.set_title("Fused mixer against eager PyTorch, by channels @ height x width")
    axis.margins(y=0.15)
    axis.legend(fontsize=9, frameon=False, loc="upper right", ncols=len(series) + 1)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def roofline(plt: Any, rows: Rows) -> Any:
    """Time against the bytes that a call must move, with the floor that the copy bandwidth sets."""
    found = [row for row in rows.all if row.status == "OK" and row.direction == "forward" and row.gb_per_s > 0]
    found = [row for row in found if row.provider in (*FUSED, "eager", "clone") and row.suite != "threads"]
    if not any(row.provider in FUSED for row in found):
        return None
    copies = [row.gb_per_s for row in rows.good("machine", ("copy",))]
    copies = copies or [row.gb_per_s for row in found if row.provider == "clone"]
    figure, axis = plt.subplots(figsize=(7, 5))
    for name in ("eager", *FUSED, "clone"):
        points = [(row.gb_per_s * row.p50_us / 1e3, row.p50_us) for row in found if row.provider == name]
        if points:
            colour, marker = COLOURS[name], MARKERS[name]
            axis.plot(
                *zip(*points, strict=True), linestyle="", marker=marker, color=colour, label=NAMES.get(name, name)
            )
    if copies:
        sizes = sorted(row.gb_per_s * row.p50_us / 1e3 for row in found)
        ends = [sizes[0], sizes[-1]]
        floor = [size / max(copies) * 1e3 for size in ends]
        axis.plot(ends, floor, color="black", linewidth=1, label=f"floor: {max(copies):,.0f} GB/s, the fastest copy")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("bytes that a call must move, MB")
    axis.set_ylabel("time of a call, µs")
    axis.set_title("Forward pass against the bandwidth floor")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure
