"""One provider on one case: checked against float64, then timed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import torch
from torch import Tensor

from benchmarks import inputs, timing
from benchmarks.cases import Case
from benchmarks.environment import facts, sm_clock
from benchmarks.memory import peak_bytes
from benchmarks.providers import (
    COMPILED,
    MIXERS,
    PROVIDERS,
    Call,
    Provider,
    Unavailable,
    exact,
    minimal_bytes,
    mixer_flops,
)
from benchmarks.results import Result, blank

# Relative L2 error of y - x in float32. The other mixers sum over thousands of tokens, in whatever order.
FORWARD_BOUND, OTHER_BOUND = 1e-6, 1e-5
# A ReLU or soft-shrink gate within rounding of its kink may flip: about sqrt(2e-7) of a gradient's norm.
GRADIENT_BOUND = 2e-3
# 16-bit: the error of y as a multiple of that of rounding the float64 answer, plus a constant.
ROUNDING_FACTOR, ROUNDING_EXTRA, ROUNDING_EXTRA_OTHER, ROUNDING_EXTRA_GRADIENT = 1.25, 1e-3, 2e-2, 1e-2


class Meter:
    """Measures cases on one device, within budgets of time."""

    def __init__(
        self,
        device_type: str,  # "cpu", "cuda", or "stand-in"
        seconds: float = 0.4,  # of timing for a provider on a case
        slowest: float = 1.5,  # seconds of a single call that is still measured
        compile_seconds: float = 60.0,  # for all compilations together
    ) -> None:
        self.device_type = device_type
        self.device = "cuda" if device_type == "cuda" else "cpu"
        self.seconds = seconds
        self.slowest = slowest
        self.compile_seconds = compile_seconds
        self._facts = facts(device_type)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, for every provider
        self._cold = timing.ColdCache() if self.device == "cuda" else None
        self._last: dict[tuple[str, str, str, int], tuple[float, int]] = {}  # series -> (microseconds, tokens)

    def run(
        self,
        case: Case,
        providers: tuple[str, ...],
    ) -> Iterator[Result]:
        """A row for each provider, the baseline first."""
        x = inputs.feature_map(case, self.device)
        dy = inputs.cotangent(x) if case.direction != "forward" else None
        before = sm_clock() if self.device == "cuda" else ""
        bench = _Bench(self, case, x, dy)
        rows = []
        for name in dict.fromkeys((*(["eager"] if "eager" in providers else []), *providers)):
            row = bench.measure(PROVIDERS[name])
            rows.append(row)
            if self.device == "cpu":
                yield row
        if self.device == "cuda":
            clocks = f"{before} > {sm_clock()}"
            yield from (replace(row, clocks=clocks) for row in rows)

    def row(self, call: Case, **values: object) -> Result:
        """A row of this meter for a case."""
        size = {name: getattr(call, name) for name in ("suite", "batch", "channels", "height", "width", "dtype")}
        rest = {"case": call.name, "direction": call.direction, "threads": call.threads, "input": inputs.source(call)}
        return blank(**(self._facts | size | rest | values))

    def too_slow(self, case: Case, provider: str) -> str:
        """Why a case would take too long, judged by the last smaller one: nothing here grows faster than N^2."""
        series = provider, case.direction, case.dtype, case.channels
        if series not in self._last:
            return ""
        last, tokens = self._last[series]
        expected = last * max(1, case.tokens / tokens) ** 2 / 1e6
        if expected <= self.slowest:
            return ""
        return f"a call would take up to {expected:.0f} s, judged by {last / 1e6:.2g} s for {tokens} tokens"

    def remember(self, case: Case, provider: str, microseconds: float) -> None:
        if case.suite.startswith("sweep"):
            self._last[provider, case.direction, case.dtype, case.channels] = microseconds, case.tokens


class _Bench:
    """One case: its inputs, its truth and its baseline's times are shared by all providers."""

    def __init__(self, meter: Meter, case: Case, x: Tensor, dy: Tensor | None) -> None:
        self._meter, self._case, self._x, self._dy = meter, case, x, dy
        self._truth: tuple[Tensor, ...] | None = None
        self._eager: Call | None = None
        self._eager_times: dict[str, float] = {}

    def measure(self, provider: Provider) -> Result:
        case, meter = self._case, self._meter
        skipped = meter.too_slow(case, provider.name)
        if not skipped and provider.name in COMPILED and meter.compile_seconds <= 0:
            skipped = "the time for compilations is spent"
        if skipped:
            return meter.row(case, provider=provider.name, status="SKIP", reason=skipped)
        try:
            return self._measure(provider)
        except Unavailable as reason:
            return meter.row(case, provider=provider.name, status="SKIP", reason=str(reason))
        except torch.OutOfMemoryError as error:
            return meter.row(case, provider=provider.name, status="SKIP", reason=f"out of memory: {_line(error)}")
        except Exception as error:
            # torch.compile of complex numbers fails on some versions: that is a finding, not a fault of ours.
            status = "SKIP" if provider.name in COMPILED else "FAIL"
            return meter.row(case, provider=provider.name, status=status, reason=_line(error))

    def _measure(self, provider: Provider) -> Result:
        case, meter = self._case, self._meter
        parameters = provider.parameters(case, meter.device)
        function = provider.function(case, meter.device)
        call = Call(function, self._x, parameters, self._dy)
        got = self._first_call(provider, call)
        error, bound = self._error(provider, got, parameters)
        del got
        if not error <= bound:
            reason = f"relative L2 error {error:.1e} against float64, expected at most {bound:.1e}; not timed"
            return meter.row(case, provider=provider.name, error=error, status="FAIL", reason=reason)
        if provider.name == "eager":
            self._eager = call
        peak = peak_bytes(call, meter.device)
        time_it = self._on_cuda if meter.device == "cuda" else self._on_cpu
        row = time_it(provider, call, parameters, function)
        meter.remember(case, provider.name, row.p50_us)
        flops = mixer_flops(case) if provider.name in MIXERS and case.direction == "forward" else math.nan
        return replace(
            row,
            peak_bytes=peak,
            gb_per_s=_bytes(provider, case) / row.p50_us / 1e3,
            gflop_per_s=flops / row.p50_us / 1e3,
            error=error,
            status="OK",
        )

    def _first_call(self, provider: Provider, call: Call) -> tuple[Tensor, ...]:
        if provider.name not in COMPILED:
            return call()
        start = time.perf_counter()
        try:
            with time_limit(self._meter.compile_seconds):
                return call()
        finally:
            self._meter.compile_seconds -= time.perf_counter() - start

    def _error(
        self, provider: Provider, got: tuple[Tensor, ...], parameters: tuple[Tensor, ...]
    ) -> tuple[float, float]:
        """The error of the answer, and the bound it must keep."""
        mixer = provider.name in MIXERS
        truth = self._truth if mixer else None
        if truth is None:
            with all_threads():
                truth = exact(provider, self._x, parameters, self._dy)
        if mixer:
            self._truth = truth
        y_error = y_bound = 0.0
        if provider.name == "clone":
            y_error = _distance(got[0], truth[0])
        elif self._x.dtype.itemsize > 2:
            wide = self._x.double()
            y_error, y_bound = _distance(got[0].double() - wide, truth[0] - wide), OTHER_BOUND
            y_bound = FORWARD_BOUND if mixer else OTHER_BOUND
        else:
            extra = ROUNDING_EXTRA if mixer else ROUNDING_EXTRA_OTHER
            y_error, y_bound = _distance(got[0], truth[0]), _rounded(truth[0], got[0].dtype, extra)
        worst = y_error, y_bound
        for gradient, right in zip(got[1:], truth[1:], strict=True):
            bound = GRADIENT_BOUND
            if gradient.dtype.itemsize == 2 or self._x.dtype.itemsize == 2:
                bound = _rounded(right, self._x.dtype, ROUNDING_EXTRA_GRADIENT if mixer else ROUNDING_EXTRA_OTHER)
            candidate = _distance(gradient, right), bound
            if not candidate[0] <= bound:
                return candidate
            if worst[0] <= worst[1]:
                worst = max(worst, candidate)
        return worst

    def _on_cpu(self, provider: Provider, call: Call, parameters: object, function: object) -> Result:
        case, meter = self._case, self._meter
        baseline, name, threads = self._eager or call, "eager", (case.threads, case.threads)
        if case.threads > 1:  # against itself with one thread
            baseline, name, threads = call, f"{provider.name}, one thread", (case.threads, 1)
        samples = timing.paired(call, baseline, meter.seconds, threads)
        ours = timing.quantiles(samples.ours)
        ratio = timing.quantiles(samples.ratios) if self._eager or case.threads > 1 else timing.NONE
        return meter.row(
            case,
            provider=provider.name,
            protocol=samples.protocol,
            samples=len(samples.ours),
            **_spread("", ours),
            **_spread("call_", ours),
            baseline=name,
            **_ratios(ratio),
        )

    def _on_cuda(
        self,
        provider: Provider,
        call: Call,
        parameters: tuple[Tensor, ...],
        function: Callable[..., Tensor],
    ) -> Result:
        case, meter = self._case, self._meter
        assert meter._cold is not None
        count = timing.input_sets(_bytes(provider, case))
        calls: list[Callable[[], object]] = [call]
        for seed in range(1, count):
            x = self._x.roll(seed, 0) if case.batch > seed else self._x.roll(seed, -1)
            calls.append(Call(function, x.clone(), parameters, self._dy))
        protocol, samples = timing.device_times(calls, meter._cold, meter.seconds / 2)
        launch: Callable[[], object] = call
        if provider.graphed:
            graph, kept = timing.capture([call])
            launch = lambda: (graph.replay(), kept)  # noqa: E731
        device, whole = timing.quantiles(samples), timing.quantiles(timing.call_times(launch, meter.seconds / 4))
        if provider.name == "eager":
            self._eager_times = device._asdict()
        eager = self._eager_times
        ratio = timing.NONE
        if eager:
            ratio = timing.Quantiles(eager["p20"] / device.p80, eager["p50"] / device.p50, eager["p80"] / device.p20)
        return meter.row(
            case,
            provider=provider.name,
            protocol=protocol,
            samples=len(samples),
            **_spread("", device),
            **_spread("call_", whole),
            baseline="eager",
            **_ratios(ratio),
        )


def _bytes(provider: Provider, case: Case) -> int:
    """What it must move; a copy copies in both directions of the case."""
    return minimal_bytes(case._replace(direction="forward") if provider.name == "clone" else case)


def _spread(prefix: str, q: timing.Quantiles) -> dict[str, float]:
    return {f"{prefix}{name}_us": value for name, value in q._asdict().items()}


def _ratios(q: timing.Quantiles) -> dict[str, float]:
    return {f"ratio_{name}": value for name, value in q._asdict().items()}


def _distance(got: Tensor, truth: Tensor) -> float:
    """Relative L2 distance; infinite for anything that is not finite."""
    scale = truth.norm().item()
    difference = (got.double() - truth).norm().item()
    if difference == 0:
        return 0.0
    return difference / scale if math.isfinite(difference) and scale > 0 else math.inf


def _rounded(truth: Tensor, dtype: torch.dtype, extra: float) -> float:
    return ROUNDING_FACTOR * _distance(truth.to(dtype), truth) + extra


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


@contextmanager
def all_threads() -> Iterator[None]:
    """Use every core in the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body after so many seconds; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
