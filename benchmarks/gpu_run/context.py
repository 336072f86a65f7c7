"""What every step of `make gpu` is given."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import inputs
from benchmarks.cases import Case
from benchmarks.measure import Meter
from benchmarks.networks import NetworkCall
from benchmarks.providers import PROVIDERS, Call, call_of
from benchmarks.results import Result, Writer, read


class Skip(Exception):
    """This step cannot run here; the message says why."""


class Run:
    """What a step needs: where to write, on which device, until when."""

    def __init__(self, out: Path, stand_in: bool, arguments: Sequence[str] = ()) -> None:
        self.out, self.stand_in, self.arguments = out, stand_in, arguments
        self.until = float(os.environ.get("AFFNET_UNTIL", time.time() + 60))
        if stand_in:
            torch.set_num_threads(1)
        kind, seconds, compile_seconds = ("stand-in", 0.02, 10) if stand_in else ("cuda", 0.08, 35)
        self.meter = Meter(kind, seconds, slowest=0.3, compile_seconds=compile_seconds)
        self.device = self.meter.device
        # Under the interpreter a CPU stands in for Triton's device; nothing stands in for CUDA C++.
        self.fused = ("cpu", "triton") if stand_in else ("triton", "cuda")

    def write(self, case: Case, /, **values: object) -> Result:
        row = self.meter.row(case, **values)
        with Writer(self.out / "results.csv") as writer:
            writer.write(row)
        return row

    def rows(self, suite: str) -> list[Result]:
        path = self.out / "results.csv"
        return [row for row in read([path]) if row.suite == suite] if path.exists() else []

    def small(self, case: Case) -> Case:
        """The case itself, or on a stand-in a tiny one of the same kind."""
        if not self.stand_in:
            return case
        if case.network:
            return case._replace(network="affnet_et", batch=2, height=64, width=64)
        size = min(case.height, 8), min(case.width, 8)
        # Triton's interpreter truncates to bfloat16, where a device rounds.
        dtype = "float16" if case.dtype == "bfloat16" else case.dtype
        return case._replace(batch=1, channels=2 * case.blocks, height=size[0], width=size[1], dtype=dtype)


def call(provider: str, case: Case, device: str) -> Call | NetworkCall:
    return call_of(PROVIDERS[provider], case, inputs.example(case, device))
