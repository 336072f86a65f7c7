"""The steps of `make gpu` as data, most valuable first: if time runs out, the least valuable are lost."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.tables import markdown

TOTAL = 540.0  # seconds for everything
# The limits add up to less: the rest is for starting processes and writing reports.


class Step(NamedTuple):
    name: str
    shows: str
    seconds: float  # at most, the import of torch included
    program: str  # a function of gpu_run/steps.py
    arguments: tuple[str, ...] = ()


PLAN = (
    Step(
        "device",
        "the device answers; driver, clocks, packages, commit, copy and product rates (cold import)",
        53,
        "device",
    ),
    Step("contact", "one forward and backward pass of each backend that is built, against float64", 45, "contact"),
    Step(
        "build", "the extension for this device; meanwhile every Triton kernel of the headline compiled", 110, "build"
    ),
    Step("contact-built", "the same for what the build has added", 22, "contact"),
    Step(
        "headline",
        "the shipped shapes, batch 64: fused, eager, eager as a CUDA graph, clone",
        65,
        "suites",
        ("shipped",),
    ),
    Step(
        "paths",
        "the ways a call may go: Triton, one launch of CUDA C++, cuFFT with a kernel between",
        14,
        "suites",
        ("paths-cuda",),
    ),
    Step("launches", "kernels launched per pass, by the profiler, and the device's time in them", 18, "launches"),
    Step(
        "networks",
        "the networks end to end: forward, training step, latency, other mixers, torch.compile",
        46,
        "suites",
        ("networks-cuda", "networks-mixers-cuda", "networks-compiled-cuda"),
    ),
    Step("compiled", "against torch.compile in its three forms", 46, "suites", ("compiled-cuda", "autotuned-cuda")),
    Step("tests", "pytest -m gpu, tests of first contact first", 47, "tests"),
    Step("inverse-transform", "whether irfft2 is the two-step inverse on this device", 14, "inverse_transform"),
    Step(
        "others",
        "large maps, other mixers, rivals, batch 1, activations, types, growth",
        38,
        "suites",
        ("large", "against", "rivals", "sweep-cuda", "single-cuda", "activations-cuda", "dtypes-cuda"),
    ),
    Step(
        "sanitizer",
        "memcheck, racecheck and initcheck over a small call of each backend, side by side",
        20,
        "sanitizer",
    ),
)


def table() -> str:
    lines = [[step.name, step.shows, f"{step.seconds:.0f}"] for step in PLAN]
    lines.append(["together", f"of {TOTAL:.0f} s", f"{sum(step.seconds for step in PLAN):.0f}"])
    return markdown(["step", "what it shows", "limit, s"], lines, words=2)
