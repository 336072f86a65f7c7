"""Pictures of results."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import network_tables
from benchmarks.cases import FUSED, NETWORKS
from benchmarks.growth import exponents
from benchmarks.results import Result
from benchmarks.tables import NAMES, Rows

COLOURS = {
    "cpu": "#c1272d",
    "triton": "#c1272d",
    "cuda": "#e8833a",
    "eager": "#3a6ea5",
    "compile": "#6baed6",
    "eager-graph": "#9ecae1",
    "attention": "#2e8b57",
    "attention-flash": "#66c2a5",
    "depthwise": "#8856a7",
    "fft-conv": "#c994c7",
    "token-mlp": "#b8860b",
    "clone": "#888888",
}
MARKERS = dict(zip(COLOURS, "oosDvX^<PpsX", strict=True))
NETWORK_COLOURS = {
    "official": "#3a6ea5",
    "official-graph": "#9ecae1",
    "compiled": "#6baed6",
    "fused": "#e8833a",
    "fused-channels-last": "#d6409f",
    "fused-compiled": "#8c510a",
    "fused-inference": "#c1272d",
    "fused-inference-graph": "#67000d",
    "with-attention": "#2e8b57",
    "with-large-kernel": "#8856a7",
    "with-mlp": "#b8860b",
}


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
    for picture in (complexity, speedup, roofline, cliffs, networks):
        figure = picture(plt, rows)
        if figure is None:
            continue
        figure.text(0.01, -0.01, textwrap.fill(note, 150), fontsize=7.5, color="#555555", va="top")
        path = folder / f"{picture.__name__}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written


def complexity(plt: Any, rows: Rows) -> Any:
    """Time against tokens, both logarithmic; each line carries its name and fitted exponent at its end."""
    sweep = [row for row in rows.all if row.suite.startswith("sweep") and row.status == "OK"]
    if not sweep:
        return None
    dtype = sweep[-1].dtype
    sweep = [row for row in sweep if row.dtype == dtype]
    fits = {(fit.provider, fit.direction): fit.exponent for fit in exponents(sweep)}
    directions = list(dict.fromkeys(row.direction for row in sweep))
    figure, axes = plt.subplots(1, len(directions), figsize=(7.6 * len(directions), 5.2), squeeze=False, sharey=True)
    sizes = sorted({row.height for row in sweep})
    for axis, direction in zip(axes[0], directions, strict=True):
        ends = []
        for name, colour in COLOURS.items():
            found = [row for row in sweep if (row.provider, row.direction) == (name, direction)]
            if not found:
                continue
            found.sort(key=lambda row: row.height)
            xs, ys = [row.height**2 for row in found], [row.p50_us for row in found]
            wide = 2.8 if name in FUSED else 1.5
            axis.plot(xs, ys, marker=MARKERS[name], color=colour, linewidth=wide)
            exponent = fits.get((name, direction))
            ends.append((ys[-1], NAMES[name] + (f"  $N^{{{exponent:.2f}}}$" if exponent is not None else ""), colour))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlim(0.8 * sizes[0] ** 2, 1.3 * sizes[-1] ** 2)
        axis.set_xticks([size**2 for size in sizes], [f"{size}²" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("tokens N = H x W")
        axis.set_title(f"{direction}, {sweep[0].channels} channels, batch {sweep[0].batch}, {dtype}", fontsize=11)
        axis.grid(True, which="major", alpha=0.3)
        _label_ends(axis, ends, 1.4 * sizes[-1] ** 2)
    _time_axis(axes[0][0])
    figure.tight_layout(w_pad=4)
    return figure


def _label_ends(axis: Any, ends: Sequence[tuple[float, str, str]], x: float) -> None:
    """Text beside the ends of lines, in their order and moved apart where they would overlap."""
    low, high = (math.log10(bound) for bound in axis.get_ylim())
    gap, place = (high - low) / 19, -math.inf
    for y, name, colour in sorted(ends):
        place = max(math.log10(y), place + gap)
        axis.text(x, 10**place, name, color=colour, va="center", fontsize=9.5, clip_on=False)


def _time_axis(axis: Any) -> None:
    def name(microseconds: float, _: int) -> str:
        for unit, size in (("s", 1e6), ("ms", 1e3)):
            if microseconds >= size:
                return f"{microseconds / size:g} {unit}"
        return f"{microseconds:g} µs"

    axis.yaxis.set_major_formatter(name)
    axis.set_ylabel("time of a call (median)")


def speedup(plt: Any, rows: Rows) -> Any:
    """Bars: how many times faster than eager, with the spread of the ratios; a panel for each type."""
    found = [row for row in rows.all if row.suite in ("headline", "shipped") and math.isfinite(row.ratio_p50)]
    found = [row for row in found if row.provider in FUSED and row.status == "OK"]
    if not found:
        return None
    dtypes = list(dict.fromkeys(row.dtype for row in found))
    cases = list(dict.fromkeys((row.case, row.batch) for row in found))
    series = list(dict.fromkeys((row.provider, row.direction) for row in found))
    size = (max(9, 1.05 * len(cases)), 4.2 * len(dtypes))
    figure, axes = plt.subplots(len(dtypes), 1, figsize=size, squeeze=False)
    width = 0.84 / len(series)
    for axis, dtype in zip(axes[:, 0], dtypes, strict=True):
        for place, (provider, direction) in enumerate(series):
            bars = {
                (row.case, row.batch): row
                for row in found
                if (row.provider, row.direction, row.dtype) == (provider, direction, dtype)
            }
            xs = [index + (place - (len(series) - 1) / 2) * width for index, case in enumerate(cases) if case in bars]
            chosen = [bars[case] for case in cases if case in bars]
            low = [max(0.0, row.ratio_p50 - row.ratio_p20) for row in chosen]
            high = [max(0.0, row.ratio_p80 - row.ratio_p50) for row in chosen]
            axis.bar(
                xs,
                [row.ratio_p50 for row in chosen],
                width * 0.94,
                yerr=(low, high),
                color=COLOURS[provider],
                alpha=1.0 if direction == "forward" else 0.5,
                error_kw={"elinewidth": 1, "ecolor": "#444444", "capsize": 2},
                label=f"{NAMES[provider]}, {direction}",
            )
            for x, row, above in zip(xs, chosen, high, strict=True):
                at = (x, row.ratio_p50 + above)
                axis.annotate(f"{row.ratio_p50:.1f}", at, (0, 2), textcoords="offset points", fontsize=8, ha="center")
        axis.axhline(1, color="#3a6ea5", linewidth=1.5, label="eager reference")
        axis.set_xticks(range(len(cases)), [f"{case}\nB={batch}" for case, batch in cases], fontsize=9)
        axis.set_xlim(-0.6, len(cases) - 0.4)
        axis.set_ylabel("times faster than eager")
        activations = " and ".join(sorted({row.activation for row in found}))
        axis.set_title(f"Fused mixer against eager PyTorch: channels@map, {dtype}, {activations}", fontsize=11, pad=26)
        axis.grid(True, axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        axis.legend(
            fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series) + 1, borderpad=0
        )
    figure.tight_layout()
    return figure


def roofline(plt: Any, rows: Rows) -> Any:
    """Time against the bytes that a call must move, with the floor that the copy bandwidth sets."""
    found = [row for row in rows.all if row.status == "OK" and row.direction == "forward" and row.gb_per_s > 0]
    found = [row for row in found if row.suite in ("headline", "shipped", "large", "sweep", "sweep-cuda", "single")]
    if not any(row.provider in FUSED for row in found):
        return None
    copies = [row.gb_per_s for row in rows.good("machine", ("copy",))]
    copies = copies or [row.gb_per_s for row in found if row.provider == "clone"]
    figure, axis = plt.subplots(figsize=(8, 5))
    for name in ("eager", *FUSED, "clone"):
        points = [(_megabytes(row), row.p50_us) for row in found if row.provider == name]
        if points:
            style = {"linestyle": "", "marker": MARKERS[name], "color": COLOURS[name], "alpha": 0.8}
            axis.plot(*zip(*points, strict=True), label=NAMES[name], **style)
    if copies:
        ends = [f([_megabytes(row) for row in found]) for f in (min, max)]
        floor = [size / max(copies) * 1e3 for size in ends]
        axis.plot(ends, floor, color="black", linewidth=1, label=f"floor: {max(copies):,.0f} GB/s, the fastest copy")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(lambda size, _: f"{size:g} MB" if size >= 1 else f"{1e3 * size:g} kB")
    axis.set_xlabel("bytes that the call must move: x in, y out")
    axis.set_title("Forward pass against the bandwidth floor", fontsize=11)
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize=9, frameon=False)
    _time_axis(axis)
    figure.tight_layout()
    return figure


def _megabytes(row: Result) -> float:
    return row.gb_per_s * row.p50_us / 1e3


def cliffs(plt: Any, rows: Rows) -> Any:
    """Awkward sizes: the automatic choice against eager on a logarithmic axis; bars left of 1 are slower."""
    found = rows.good("cliffs", ("auto",))
    if not found:
        return None
    names = list(dict.fromkeys(row.case for row in found))
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(names) + 1.6))
    for direction, shift, shade in (("forward", -0.2, 1.0), ("forward+backward", 0.2, 0.5)):
        for row in (row for row in found if row.direction == direction):
            y, ratio = names.index(row.case) + shift, row.ratio_p50
            axis.barh(y, ratio - 1, 0.38, left=1, color="#c1272d" if ratio >= 1 else "black", alpha=shade)
            axis.text(ratio, y, f" {ratio:.2f} ", va="center", ha="left" if ratio >= 1 else "right", fontsize=8)
        axis.barh(0, 0, color="#c1272d", alpha=shade, label=direction)
    axis.axvline(1, color="#3a6ea5", linewidth=1.5)
    axis.set_xscale("log")
    low, high = (f(row.ratio_p50 for row in found) for f in (min, max))
    axis.set_xlim(min(0.7, 0.7 * low), 1.5 * max(high, 1.5))
    ticks = [
        ratio for ratio in (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if 0.7 * low < ratio < 1.5 * high or ratio == 1
    ]
    axis.set_xticks(ticks, [f"{ratio:g}" for ratio in ticks])
    axis.set_xticks([], minor=True)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.invert_yaxis()
    axis.set_xlabel("times faster than eager (black: slower)")
    axis.set_title("Awkward sizes, backend chosen automatically: channels@map", fontsize=11, pad=20)
    axis.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
    figure.tight_layout()
    return figure


def networks(plt: Any, rows: Rows) -> Any:
    """Images per second: bars of each network by implementation; lines of each mixer over the size of the images."""
    ways, mixers = network_tables.measured(rows), network_tables.measured(rows, mixers=True)
    panels = [
        (what, title)
        for what, title in (("forward", "forward"), ("training", "training step"))
        if any(what in by for by in ways.values())
    ]
    lines = [name for name in NETWORKS if any(case.startswith(f"{name}@") for case, _, _ in mixers)]
    if not panels and not lines:
        return None
    height = bool(panels) + bool(lines)
    figure = plt.figure(figsize=(13, 4.4 * height), layout="constrained")
    rows_of_panels = figure.subfigures(height, 1, squeeze=False)[:, 0]
    if panels:
        groups = [sum(what in by for by in ways.values()) for what, _ in panels]  # bars, which set a panel's width
        axes = rows_of_panels[0].subplots(1, len(panels), squeeze=False, width_ratios=[max(4, n) for n in groups])[0]
        for axis, (what, title) in zip(axes, panels, strict=True):
            _bars(axis, ways, what, title)
    if lines:
        axes = rows_of_panels[-1].subplots(1, len(lines), squeeze=False, sharey=True)[0]
        for axis, name in zip(axes, lines, strict=True):
            _lines(axis, mixers, name)
        axes[0].set_ylabel("images per second")
        axes[-1].legend(fontsize=8.5, frameon=False)
    return figure


def _bars(axis: Any, found: network_tables.Found, what: str, title: str) -> None:
    here = {key: by[what] for key, by in found.items() if what in by}
    groups = list(dict.fromkeys((case, dtype) for case, dtype, _ in here))
    series = [name for name in NETWORK_COLOURS if any(provider == name for _, _, provider in here)]
    width = 0.84 / len(series)
    for place, name in enumerate(series):
        bars = {index: here[(*group, name)] for index, group in enumerate(groups) if (*group, name) in here}
        xs = [index + (place - (len(series) - 1) / 2) * width for index in bars]
        rates = [network_tables.rate(row) for row in bars.values()]
        axis.bar(xs, rates, width * 0.94, color=NETWORK_COLOURS[name], label=NAMES[name])
        for x, rate in zip(xs, rates, strict=True):
            axis.annotate(f"{rate:.3g}", (x, rate), (0, 2), textcoords="offset points", fontsize=8, ha="center")
    batches = " and ".join(f"B={batch}" for batch in sorted({row.batch for row in here.values()}))
    axis.set_title(f"{title}, {batches}", fontsize=11, loc="left")
    axis.set_xticks(range(len(groups)), [f"{case}\n{dtype}" for case, dtype in groups], fontsize=9)
    axis.set_ylabel("images per second")
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
    axis.grid(True, axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8.5, frameon=False, loc="upper right")


def _lines(axis: Any, found: network_tables.Found, name: str) -> None:
    rows = [by["forward"] for (case, _, _), by in found.items() if case.startswith(f"{name}@") and "forward" in by]
    for provider, colour in NETWORK_COLOURS.items():
        points = sorted((row.height, network_tables.rate(row)) for row in rows if row.provider == provider)
        if points:
            wide = 2.8 if provider == "fused" else 1.5
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, linewidth=wide, label=NAMES[provider])
    sizes = sorted({row.height for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", subs=[2, 5])
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axis.yaxis.set_minor_formatter(lambda rate, _: f"{rate:g}")
    axis.set_xlabel("pixels: H = W of the images")
    axis.set_title(f"{name} with other mixers, forward, B={rows[0].batch}, {rows[0].dtype}", fontsize=10.5, loc="left")
    axis.grid(True, which="both", alpha=0.3)
