"""How a mixer's time grows with the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.results import Result

UPPER_PART = 32 * 32  # tokens from which on the cost of a call no longer shows


class Growth(NamedTuple):
    provider: str
    direction: str
    dtype: str
    exponent: float  # p in time ~ N^p
    smallest: int  # tokens of the fit
    largest: int
    points: int


def exponents(rows: Iterable[Result]) -> list[Growth]:
    """A least-squares line through log time over log N for each provider of the sweep, on its upper part.

    The times are 20th percentiles: what disturbs a measurement only ever adds to it.
    """
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        if row.suite.startswith("sweep") and row.status == "OK" and row.height * row.width >= UPPER_PART:
            series.setdefault((row.provider, row.direction, row.dtype), {})[row.height * row.width] = row.p20_us
    return [
        Growth(provider, direction, dtype, slope(points), min(points), max(points), len(points))
        for (provider, direction, dtype), points in series.items()
        if len(points) >= 3
    ]


def slope(points: dict[int, float]) -> float:
    """Of the least-squares line through (log N, log time)."""
    xs, ys = [math.log(n) for n in points], [math.log(t) for t in points.values()]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - x_mean) ** 2 for x in xs)
