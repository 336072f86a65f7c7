"""How a mixer's time grows with the number of tokens."""

from __future__ import annotations

import math
import statistics
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
        Growth(*name, _slope(points), min(points), max(points), len(points))
        for name, points in series.items()
        if len(points) >= 3
    ]


def _slope(points: dict[int, float]) -> float:
    logs = ([math.log(value) for value in axis] for axis in (points.keys(), points.values()))
    return statistics.linear_regression(*logs).slope
