"""How a time is taken; the same protocol for every provider, `clone` included.

On a CPU, `paired`: single calls, one of the provider and one of its baseline, alternating, after two of each to warm up
(none, if they take longer than a quarter of a second). A hot loop over one provider would flatter it by 1.2x, because
its data would stay in the cache. Ratios are taken pair by pair. Pairs during which the operating system gave the core
to another program are dropped; `paired, disturbed` says that too few would have been left.

On a CUDA device, `graph`: calls on different inputs are captured into one CUDA graph, the level-2 cache is evicted by
reading a buffer of twice its size, and events around the graph's replay time it: no input or output is in the cache.
The device is kept busy by a spinning kernel until the whole graph has been enqueued, so that no launch gap is counted.
`events` takes the place of `graph` where a provider cannot be captured. The time of a call, launches included, is a
host clock's around one call and a synchronisation.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SLOW = 0.25  # seconds
ENOUGH = 5  # undisturbed pairs
FEWEST = 3  # pairs, however long they take
CLOCK = 2.2e9  # cycles per second, at least any device's
Run = Callable[[], object]


class Quantiles(NamedTuple):
    p20: float
    p50: float
    p80: float


NONE = Quantiles(math.nan, math.nan, math.nan)


def quantiles(samples: Sequence[float]) -> Quantiles:
    """The 20th, 50th and 80th percentile, interpolated."""
    if not samples:
        return NONE
    if len(samples) == 1:
        return Quantiles(*(3 * (samples[0],)))
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Quantiles(p20, statistics.median(samples), p80)


def ratio(a: Quantiles, b: Quantiles) -> Quantiles:
    """a over b where the samples are no pairs: the widest that the two spreads allow."""
    return Quantiles(a.p20 / b.p80, a.p50 / b.p50, a.p80 / b.p20)


class Paired(NamedTuple):
    protocol: str
    ours: list[float]  # microseconds
    baseline: list[float]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.ours, self.baseline, strict=True)]


def paired(
    ours: Run,
    baseline: Run,
    seconds: float,  # to spend
    threads: tuple[int, int] = (1, 1),  # of ours and of the baseline
    least: int = FEWEST,  # pairs to take, whatever the time
    most: int = 201,
) -> Paired:
    """Single calls, alternating."""
    before = torch.get_num_threads()
    pairs: list[tuple[float, float]] = []
    disturbed: list[bool] = []
    end = time.perf_counter() + seconds
    try:
        for turn in range(most + 2):
            if len(pairs) >= least and time.perf_counter() > end:
                break
            preemptions = _preemptions()
            times = []
            for run, count in zip((ours, baseline), threads, strict=True):
                if torch.get_num_threads() != count:
                    torch.set_num_threads(count)
                start = time.perf_counter_ns()
                run()
                times.append((time.perf_counter_ns() - start) / 1e3)
            if turn >= 2 or sum(times) > SLOW * 1e6:
                pairs.append((times[0], times[1]))
                disturbed.append(_preemptions() > preemptions)
    finally:
        torch.set_num_threads(before)
    quiet = [pair for pair, bad in zip(pairs, disturbed, strict=True) if not bad]
    protocol, pairs = ("paired", quiet) if len(quiet) >= ENOUGH else ("paired, disturbed", pairs)
    return Paired(protocol, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _preemptions() -> int:
    """How often the operating system has taken the core from this thread."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def input_sets(
    call_bytes: int,  # that one call reads and writes
) -> int:
    """How many different inputs a timed graph uses: enough to fill the cache and make the events' cost negligible."""
    return min(max(4, math.ceil(1.5 * cache_bytes() / max(call_bytes, 1))), 24)


def cache_bytes() -> int:
    """Bytes in the current CUDA device's level-2 cache."""
    return int(torch.cuda.get_device_properties().L2_cache_size)


class ColdCache:
    """Evicts the level-2 cache by reading: lines that were written would be written back during the next call."""

    def __init__(self) -> None:
        self._buffer = torch.ones(2 * cache_bytes() // 4, device="cuda")
        self._sum = torch.empty((), device="cuda")

    def evict(self) -> None:
        torch.sum(self._buffer, dim=0, out=self._sum)


def capture(runs: Sequence[Run]) -> tuple[torch.cuda.CUDAGraph, list[object]]:
    """A CUDA graph of the calls in sequence, and their results, which keep its memory alive."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            runs[0]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run() for run in runs]
    return graph, results


def device_times(
    runs: Sequence[Run],  # the provider on different inputs
    cold: ColdCache,
    seconds: float,
) -> tuple[str, list[float]]:
    """The protocol that was possible, and samples of the device time per call in microseconds."""
    try:
        graph, _results = capture(runs)
    except RuntimeError:
        torch.cuda.synchronize()
        return "events", _event_times(lambda: [run() for run in runs], len(runs), cold, seconds)
    return "graph", _event_times(graph.replay, len(runs), cold, seconds)


def _event_times(run: Run, calls: int, cold: ColdCache, seconds: float) -> list[float]:
    spin = _spin_cycles(max(_host_seconds(run) for _ in range(2)))
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 7 or (time.perf_counter() < end and len(samples) < 200):
        cold.evict()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(spin)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        samples.append(1e3 * start.elapsed_time(stop) / calls)
    return samples[2:]


def _host_seconds(run: Run) -> float:
    """How long the host takes to enqueue the work: it grows with the number of a graph's nodes."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed


def _spin_cycles(host_seconds: float) -> int:
    """Clock cycles for which the device must spin so that the host is certainly ahead of it."""
    return int(CLOCK * (2 * host_seconds + 20e-6))


def call_times(run: Run, seconds: float) -> list[float]:
    """Microseconds from the call in Python until the CUDA device has finished, launches included."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 9 or (time.perf_counter() < end and len(samples) < 100):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        run()
        torch.cuda.synchronize()
        samples.append((time.perf_counter_ns() - start) / 1e3)
    return samples[2:]
