"""Tables of whole networks."""

from __future__ import annotations

from collections.abc import Callable
from statistics import geometric_mean

from benchmarks.cases import FUSED_NETWORKS, NETWORKS
from benchmarks.results import Result
from benchmarks.tables import NAMES, Rows, markdown, times

Found = dict[tuple[str, str, str], dict[str, Result]]  # (case, dtype, provider) -> what was measured -> its row
WHAT = ("forward", "latency", "training")
COUNTING = (
    "The paper's figures are multiply-adds by the official profiler, which counts the FFTs by a formula (361.9, 794.1 "
    "and 1461.7 M); FlopCounterMode counts two operations for each multiply-add, halved here, and no FFT."
)


def rate(row: Result) -> float:
    """Images per second, from the call in Python until the result is there."""
    return row.batch / row.call_p50_us * 1e6


def parameters(row: Result) -> float:
    """Millions of parameters."""
    return int(row.reason.split()[0]) / 1e6


def multiply_adds(row: Result) -> float:
    """Millions for an image, by FlopCounterMode; not of a training step."""
    return row.gflop_per_s * row.p50_us / row.batch / 2e3


def speedup(rows: Rows, row: Result) -> float:
    """Times as fast as the official network: pair by pair where they were timed in pairs."""
    official = rows.beside(row, "official")
    if row.protocol.startswith("paired") or official is None:
        return row.ratio_p50
    return official.call_p50_us / row.call_p50_us


def measured(rows: Rows, mixers: bool = False) -> Found:
    """The good rows of networks: those of the suites that compare mixers, or of the others."""
    found: Found = {}
    for row in rows.all:
        if row.suite.startswith("networks") and row.suite.startswith("networks-mixers") == mixers:
            what = "latency" if row.batch == 1 and not mixers else "forward"
            what = "training" if row.direction != "forward" else what
            if row.status == "OK":
                found.setdefault((row.case, row.dtype, row.provider), {}).setdefault(what, row)
    names, kinds = list(NETWORKS), list(NAMES)

    def place(key: tuple[str, str, str]) -> tuple[int, str, int]:
        case, dtype, provider = key
        return names.index(_name(case)), dtype, kinds.index(provider)

    return {key: found[key] for key in sorted(found, key=place)}


def speeds(rows: Rows) -> str:
    """A line for each network and way of running it."""
    found = measured(rows)

    def cells(key: tuple[str, str, str], by: dict[str, Result]) -> list[str]:
        case, dtype, provider = key
        line = [f"{case}, {dtype}, {NAMES[provider]}"]
        for what in WHAT:
            row = by.get(what)
            value = f"{row.call_p50_us / 1e3:.1f}" if row and what == "latency" else f"{rate(row):.1f}" if row else "-"
            line += [value, times(speedup(rows, row)) if row else "-"]
        line += [f"{by[what].peak_bytes / 2**20:.0f}" if what in by else "-" for what in ("forward", "training")]
        return [*line, f"{max(row.error for row in by.values()):.0e}"]

    header = ["network@pixels, type, implementation", "images/s", "x official", "ms at B=1", "x official"]
    header += ["training images/s", "x official", "peak MiB", "in training", "largest error"]
    table = markdown(header, (cells(*item) for item in found.items()))
    return f"{table}\n\n{_batches(found)}" if table else ""


def _batches(found: Found) -> str:
    def batches(what: str) -> str:
        return " and ".join(f"B={batch}" for batch in sorted({by[what].batch for by in found.values() if what in by}))

    said = f"Forward at {batches('forward')}" if batches("forward") else "Forward"
    if training := batches("training"):
        said += f"; a training step is forward, cross-entropy, backward and AdamW, at {training}"
    said += ". Official: the same network with the mixer in eager PyTorch."
    if any(dtype != "float32" for _, dtype, _ in found):
        said += " 16-bit types are autocast, whose rounding an untrained network amplifies, in every implementation."
    return said


def sizes(rows: Rows) -> str:
    """Parameters and multiply-adds of the published networks, beside the paper's."""
    lines = []
    for network, paper in NETWORKS.items():
        row = next(
            (row for row in rows.all if row.case == f"{network}@256" and _counted(row) and row.provider == "official"),
            None,
        )
        if row:
            lines.append(
                [network, f"{1e6 * parameters(row):,.0f}", f"{multiply_adds(row):,.1f}", f"{paper * 1e3:,.0f}"]
            )
    table = markdown(["network at 256 pixels", "parameters", "multiply-adds, M", "the paper's, M"], lines)
    return f"{table}\n\n{COUNTING}" if table else ""


def mixers(rows: Rows) -> str:
    """A line for each network and mixer, with a number for each size of the images."""
    found = measured(rows, mixers=True)
    pixels = sorted({row.height for by in found.values() for row in by.values()})

    def cells(network: str, dtype: str, provider: str) -> list[str]:
        by = [found.get((f"{network}@{size}", dtype, provider), {}) for size in pixels]

        def numbers(what: str, value: Callable[[Result], float], form: str) -> str:
            texts = [format(value(each[what]), form) if what in each else "-" for each in by]
            return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

        training = next((each["training"] for each in by if "training" in each), None)
        return [
            f"{network}, {dtype}, {NAMES[provider]}",
            numbers("forward", parameters, ".2f"),
            numbers("forward", lambda row: multiply_adds(row) / 1e3, ".2f"),
            numbers("forward", rate, ".1f"),
            numbers("forward", lambda row: row.peak_bytes / 2**20, ".0f"),
            f"{rate(training):.1f}" if training else "-",
        ]

    at = f"at {' / '.join(map(str, pixels))}"
    header = [f"network, type, mixer; numbers {at} pixels", "parameters, M", "multiply-adds, G", "images/s", "peak MiB"]
    header += ["training images/s"]
    kinds = dict.fromkeys((_name(case), dtype, provider) for case, dtype, provider in found)
    return markdown(header, (cells(*kind) for kind in kinds))


def all_tables(rows: Rows) -> str:
    return "\n\n".join(part for part in (mixers(rows), sizes(rows), speeds(rows)) if part)


def headlines(rows: Rows) -> list[str]:
    """How much faster than the official network, in a sentence for each implementation and pass."""
    found = measured(rows)
    said = []
    for what in WHAT:
        for dtype in dict.fromkeys(dtype for _, dtype, _ in found):
            for provider in FUSED_NETWORKS:
                same = [by[what] for key, by in found.items() if key[1:] == (dtype, provider) and what in by]
                if ratios := [speedup(rows, row) for row in same]:
                    over = ", ".join(f"{_name(row.case)} {ratio:.2f}x" for row, ratio in zip(same, ratios, strict=True))
                    said.append(
                        f"Whole network, {NAMES[provider]}, {dtype}, {what}: {geometric_mean(ratios):.2f}x official, "
                        f"geometric mean of {over}."
                    )
    return said


def _name(case: str) -> str:
    return case.split("@")[0]


def _counted(row: Result) -> bool:
    return row.status == "OK" and row.direction == "forward" and row.gflop_per_s > 0
