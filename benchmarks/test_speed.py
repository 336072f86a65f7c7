"""The same cases under pytest-benchmark, for people who compare runs: `pytest benchmarks --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import inputs
from benchmarks.cases import FUSED, SUITES, Case
from benchmarks.providers import PROVIDERS, Unavailable, call_of

pytest.importorskip("pytest_benchmark")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("provider", ["eager", *FUSED, "clone"])
@pytest.mark.parametrize("case", SUITES["headline"].cases, ids=lambda case: f"{case.name}-{case.direction}")
def test_speed(benchmark: Any, case: Case, provider: str) -> None:
    try:
        call = call_of(PROVIDERS[provider], case, inputs.example(case, DEVICE))
    except Unavailable as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{case.name} B={case.batch} {case.direction}"

    def run() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
