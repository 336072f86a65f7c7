"""Two sets of results side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.results import Result, key, newest
from benchmarks.tables import NAMES, label, markdown, microseconds

SMALLEST = 0.03  # smaller changes are not marked, however narrow the spread


def table(a: Sequence[Result], b: Sequence[Result]) -> str:
    """b's times over a's, with the spread that their p20 and p80 allow; a change beyond the spread is marked.

    Raises:
        ValueError: they have no measurement in common.
    """
    before = {key(row): row for row in newest(a) if math.isfinite(row.p50_us) and row.suite != "step"}
    pairs = [(before[key(row)], row) for row in newest(b) if key(row) in before and math.isfinite(row.p50_us)]
    if not pairs:
        raise ValueError("compare: expected files with measurements in common, got none")
    lines, moved = [], 0
    for old, new in pairs:
        low, middle, high = new.p20_us / old.p80_us, new.p50_us / old.p50_us, new.p80_us / old.p20_us
        mark = verdict(low, middle, high)
        moved += bool(mark)
        name = f"{new.suite} {label(new, NAMES.get(new.provider, new.provider))}"
        spread = f"{low:.2f}-{high:.2f}" if math.isfinite(low) and math.isfinite(high) else "-"
        lines.append([name, microseconds(old.p50_us), microseconds(new.p50_us), f"{middle:.2f}", spread, mark])
    header = ["case", "A µs", "B µs", "B / A", "spread", "moved"]
    noted = "" if pairs[0][0].device == pairs[0][1].device else (
        f"\n\nA was measured on {pairs[0][0].device}, B on {pairs[0][1].device}."
    )  # fmt: skip
    return f"{markdown(header, lines)}\n\n{moved} of {len(pairs)} moved by more than the noise.{noted}"


def verdict(low: float, middle: float, high: float) -> str:
    """ "faster" or "slower" if the whole spread lies on one side of 1 and the change is not too small to matter."""
    if high < 1 and middle < 1 - SMALLEST:
        return "faster"
    if low > 1 and middle > 1 + SMALLEST:
        return "slower"
    return ""
