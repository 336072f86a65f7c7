"""One provider on one case: checked against float64, then timed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from benchmarks import inputs, networks, timing
from benchmarks.accuracy import worst_error
from benchmarks.cases import EAGER, OFFICIAL, Case
from benchmarks.environment import facts, sm_clock
from benchmarks.memory import peak_bytes
from benchmarks.networks import NetworkCall
from benchmarks.providers import (
    PROVIDERS,
    Call,
    Provider,
    Unavailable,
    call_of,
    chosen,
    exact,
    minimal_bytes,
    mixer_flops,
)
from benchmarks.results import Result, blank


class Meter:
    """Measures cases on one device, within time budgets."""

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
        self.cold = timing.ColdCache() if self.device == "cuda" else None
        self.device_times: dict[tuple[str, Case], timing.Quantiles] = {}  # on CUDA, of what was measured before
        self._facts = facts(device_type)
        self._last: dict[tuple[object, ...], tuple[float, int]] = {}  # series -> (microseconds, tokens)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, for every provider

    def run(self, case: Case, providers: tuple[str, ...]) -> Iterator[Result]:
        """A row for each provider, the baseline first."""
        before = sm_clock() if self.device == "cuda" else ""
        bench = Bench(self, case)
        rows = []
        for name in sorted(providers, key=lambda name: name not in (EAGER[1], OFFICIAL[1])):
            row = bench.measure(PROVIDERS[name])
            rows.append(row)
            if self.device == "cpu":
                yield row
        if self.device == "cuda":
            clocks = f"{before} > {sm_clock()}"
            yield from (replace(row, clocks=clocks) for row in rows)

    def row(self, case: Case, /, **values: object) -> Result:
        """A result row for a case, with this machine's facts filled in."""
        names = ("suite", "batch", "channels", "height", "width", "dtype", "direction", "threads", "activation")
        size = {name: getattr(case, name) for name in names}
        return blank(**(self._facts | size | {"case": case.name, "input": inputs.source(case)} | values))

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def fastest(self, run: Callable[[], object], count: int) -> float:
        """Seconds that the fastest of `count` calls takes, after two calls to warm up."""
        times = []
        for _ in range(count + 2):
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[2:])

    def too_slow(self, case: Case, provider: str) -> str:
        """Why a case would take too long, judged by the last smaller one and growth with N^2; empty if it would not."""
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


class Bench:
    """One case, whose input, float64 answer and baselines are shared by all providers."""

    def __init__(self, meter: Meter, case: Case) -> None:
        self._meter, self._case = meter, case
        self._x = inputs.example(case, meter.device)
        self._truths: dict[tuple[object, int], tuple[Tensor, ...]] = {}  # by the definition and the input's seed
        self._usual: dict[object, tuple[Tensor, ...]] = {}  # of a network's definition, under autocast
        self._flops: dict[object, int] = {}  # of a network's definition, by FlopCounterMode
        self._calls: dict[tuple[str, Case], Call | NetworkCall] = {}
        self._good: set[tuple[str, Case]] = set()  # those that have run

    def measure(self, provider: Provider) -> Result:
        case, meter = self._case, self._meter
        skipped = meter.too_slow(case, provider.name)
        if not skipped and provider.compiles and meter.compile_seconds <= 0:
            skipped = "the time for compilations is spent"
        if skipped:
            return meter.row(case, provider=provider.name, status="SKIP", reason=skipped)
        try:
            return self._measure(provider)
        except Unavailable as reason:
            return meter.row(case, provider=provider.name, status="SKIP", reason=str(reason))
        except torch.OutOfMemoryError as error:
            return meter.row(case, provider=provider.name, status="SKIP", reason=f"out of memory: {one_line(error)}")
        except Exception as error:
            # torch.compile of complex numbers fails on some versions: that is a finding, not a fault of ours.
            status = "SKIP" if provider.compiles else "FAIL"
            return meter.row(case, provider=provider.name, status=status, reason=one_line(error))

    def check(self, provider: Provider) -> tuple[Call | NetworkCall, float, float]:
        """Run the call once; returns it with the error of its answer and the largest error allowed.

        Raises:
            Unavailable: the provider cannot run this case.
        """
        case = self._case
        call = self._call(provider.name, case)
        error, bound = self._error(provider, self._first_call(provider, call), 0)
        if not error <= bound and provider.kind == "mixer" and case.direction != "forward":
            again = call.on(inputs.example(case, self._meter.device, seed=1))
            error, bound = self._error(provider, again(), 1)
        return call, error, bound

    def _measure(self, provider: Provider) -> Result:
        case, meter = self._case, self._meter
        if provider.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
            raise Unavailable("interpreted Triton is not timed")
        call, error, bound = self.check(provider)
        if not error <= bound:
            reason = f"relative L2 error {error:.1e} against float64, expected at most {bound:.1e}; not timed"
            return meter.row(case, provider=provider.name, error=error, status="FAIL", reason=reason)
        self._good.add((provider.name, case))
        peak = peak_bytes(call, meter.device)
        times = (self._on_cuda if meter.device == "cuda" else self._on_cpu)(provider, call)
        p50 = times["p50_us"]
        meter.remember(case, provider.name, p50)
        reason = f"runs {chosen(case, meter.device)}" if provider.name == "auto" else ""
        if isinstance(call, NetworkCall):
            reason = f"{call.parameter_count} parameters"
        return meter.row(
            case,
            provider=provider.name,
            **times,
            peak_bytes=peak,
            gb_per_s=math.nan if case.network else _bytes(provider, case) / p50 / 1e3,
            gflop_per_s=self._operations(provider) / p50 / 1e3,
            error=error,
            status="OK",
            reason=reason,
        )

    def _operations(self, provider: Provider) -> float:
        """Of a forward pass. FlopCounterMode overstates the backward pass of a depthwise convolution many times."""
        if self._case.direction != "forward" or provider.kind not in ("mixer", "network"):
            return math.nan
        return mixer_flops(self._case) if provider.kind == "mixer" else self._flops[provider.exact]

    def _call(self, name: str, case: Case) -> Call | NetworkCall:
        """The call of a provider on this case, or on one that differs in a field."""
        if (name, case) not in self._calls:
            self._calls[name, case] = call_of(PROVIDERS[name], case, self._x)
        return self._calls[name, case]

    def _first_call(self, provider: Provider, call: Call | NetworkCall) -> tuple[Tensor, ...]:
        if not provider.compiles:
            return call()
        start = time.perf_counter()
        try:
            with time_limit(self._meter.compile_seconds):
                return call()
        finally:
            self._meter.compile_seconds -= time.perf_counter() - start

    def _error(self, provider: Provider, got: tuple[Tensor, ...], seed: int) -> tuple[float, float]:
        """The error of the answer for one input, and the largest error allowed."""
        x = inputs.example(self._case, self._meter.device, seed) if seed else self._x
        truth = self._truths.get((provider.exact, seed))
        if truth is None:
            # Many layers of a network are too small for several threads.
            with nullcontext() if self._case.network else all_threads(), networks.counter() as counter:
                truth = exact(provider, self._case, x)
            self._flops[provider.exact] = counter.get_total_flops()
        if provider.kind in ("mixer", "network"):
            self._truths[provider.exact, seed] = truth
        return worst_error(provider.kind, x, got, truth, self._under_autocast(provider))

    def _under_autocast(self, provider: Provider) -> tuple[Tensor, ...]:
        """The answer of a network's definition in a 16-bit case; empty for all else."""
        if provider.kind != "network" or self._case.dtype == "float32":
            return ()
        if provider.exact not in self._usual:
            definition = provider.exact(self._case).to(self._meter.device)
            self._usual[provider.exact] = NetworkCall(definition, self._x, self._case)()
        return self._usual[provider.exact]

    def _baseline(self, provider: Provider) -> tuple[str, str, Case]:
        """What the ratios compare with: in words, and as a provider's name and a case."""
        field, value = self._case.against
        if field == "provider":
            return str(value), str(value), self._case
        case: Case = self._case._replace(**{field: value})  # type: ignore[arg-type]
        # A case is what was measured, so the baseline's is found under its own basis of comparison.
        return f"{provider.name}, {field}={value}", provider.name, case._replace(against=EAGER)

    def _runs(self, name: str, case: Case) -> bool:
        if (name, case) not in self._good:
            try:
                self._call(name, case)()
            except (Unavailable, RuntimeError):
                return False
            self._good.add((name, case))
        return True

    def _on_cpu(self, provider: Provider, call: Call | NetworkCall) -> dict[str, Any]:
        case, meter = self._case, self._meter
        said, name, other = self._baseline(provider)
        baseline = self._call(name, other) if self._runs(name, other) else None
        least = timing.ENOUGH if case.network else timing.FEWEST
        samples = timing.paired(call, baseline or call, meter.seconds, (case.threads, other.threads), least)
        ours = timing.quantiles(samples.ours)
        return {
            "protocol": samples.protocol,
            "samples": len(samples.ours),
            "baseline": said,
            **_spread("", ours),
            **_spread("call_", ours),
            **_ratios(timing.quantiles(samples.ratios) if baseline else timing.NONE),
        }

    def _on_cuda(self, provider: Provider, call: Call | NetworkCall) -> dict[str, Any]:
        case, meter = self._case, self._meter
        assert meter.cold is not None
        calls: list[Callable[[], object]] = [call]
        # A network's own maps fill the cache.
        seeds = range(1, 1 if case.network else timing.input_sets(_bytes(provider, case)))
        calls.extend(call.on(self._x.roll(seed, 0 if case.batch > seed else -1)) for seed in seeds)
        protocol, samples = timing.device_times(calls, meter.cold, meter.seconds / 2)
        launch: Callable[[], object] = call
        if provider.graphed:
            graph, _results = timing.capture([call])
            launch = graph.replay
        ours, whole = timing.quantiles(samples), timing.quantiles(timing.call_times(launch, meter.seconds / 4))
        meter.device_times[provider.name, case] = ours
        said, name, other = self._baseline(provider)
        return {
            "protocol": protocol,
            "samples": len(samples),
            "baseline": said,
            **_spread("", ours),
            **_spread("call_", whole),
            **_ratios(timing.ratio(meter.device_times.get((name, other), timing.NONE), ours)),
        }


def _bytes(provider: Provider, case: Case) -> int:
    """The bytes that a provider must move; a copy does the same in both directions."""
    return minimal_bytes(case._replace(direction="forward") if provider.name == "clone" else case)


def _spread(prefix: str, q: timing.Quantiles) -> dict[str, float]:
    return {f"{prefix}{name}_us": value for name, value in q._asdict().items()}


def _ratios(q: timing.Quantiles) -> dict[str, float]:
    return {f"ratio_{name}": value for name, value in q._asdict().items()}


def one_line(error: BaseException) -> str:
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
    """Raise TimeoutError in the body after `seconds`; no effect outside the main thread."""
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
