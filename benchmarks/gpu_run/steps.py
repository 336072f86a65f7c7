"""The steps of `make gpu`, each `python -m benchmarks.gpu_run.steps NAME OUT`; the last line that one prints is its outcome."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from affnet_kernels import available_backends
from affnet_kernels.backends import explain, reference
from benchmarks import inputs, run
from benchmarks.cases import CUDA_BENCH, SUITES, Case
from benchmarks.environment import ROOT, smi
from benchmarks.gpu_run.driver import SKIPPED
from benchmarks.measure import Meter
from benchmarks.providers import FUSED, PROVIDERS, THRESHOLD, Call, Unavailable, minimal_bytes
from benchmarks.results import Result, Writer

SIZES = (7, 8, 14, 16, 20, 28, 32, 40, 64, 128)
SMALL = (Case("small", 2, 26, 7, 7, blocks=2), Case("small", 2, 64, 16, 16), Case("small", 1, 16, 40, 24, blocks=2))


class Run:
    """What a step needs: where to write, on which device, for how long."""

    def __init__(self, out: Path, stand_in: bool, seconds: float) -> None:
        self.out, self.stand_in, self.seconds = out, stand_in, seconds
        if stand_in:
            torch.set_num_threads(1)
        self.meter = Meter(
            "stand-in" if stand_in else "cuda", 0.02 if stand_in else 0.08, slowest=0.3, compile_seconds=75
        )
        self.device = self.meter.device

    def write(self, call: Case, **values: object) -> Result:
        row = self.meter.row(call, **values)
        with Writer(self.out / "results.csv") as writer:
            writer.write(row)
        return row

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def environment(this: Run) -> str:
    """Driver, clocks, packages, commit; the ceilings that everything else is held against."""
    print(f"python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    for name in ("torch", "triton", "numpy", "pytest", "scipy", "sklearn", "matplotlib", "tqdm"):
        print(f"{name}: {'there' if importlib.util.find_spec(name) else 'not installed'}")
    print(f"nvcc: {shutil.which('nvcc')}, compute-sanitizer: {shutil.which('compute-sanitizer')}")
    asked = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "persistence_mode")
    print(f"nvidia-smi {', '.join(asked)}: {smi(*asked) or 'no answer'}")
    print(explain(available_backends()))
    gigabytes = _copy_rate(this)
    rates = [f"copy {gigabytes:,.0f} GB/s"]
    for dtype, tf32 in (("bfloat16", False), ("float32", True), ("float32", False)):
        rates.append(_product_rate(this, dtype, tf32))
    return ", ".join(rates)


def _copy_rate(this: Run) -> float:
    count = (1 << 30) if this.device == "cuda" else (1 << 22)  # bytes
    a = torch.randint(0, 255, (count,), dtype=torch.uint8, device=this.device)
    b = torch.empty_like(a)
    seconds = _fastest(this, lambda: b.copy_(a))
    rate = 2 * count / seconds / 1e9
    this.write(_machine(), case="copy", provider="copy", protocol="fastest of 10", p50_us=seconds * 1e6,
               gb_per_s=rate, input="random", status="OK")  # fmt: skip
    return rate


def _product_rate(this: Run, dtype: str, tf32: bool) -> str:
    size = 8192 if this.device == "cuda" else 512
    a, b = (torch.randn(size, size, device=this.device).to(getattr(torch, dtype)) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    seconds = _fastest(this, lambda: a @ b)
    torch.backends.cuda.matmul.allow_tf32 = before
    name = f"matmul {'tf32' if tf32 else dtype}"
    rate = 2 * size**3 / seconds / 1e9
    this.write(_machine(), case=f"{size}^3", provider=name, dtype=dtype, protocol="fastest of 10",
               p50_us=seconds * 1e6, gflop_per_s=rate, input="random", status="OK")  # fmt: skip
    return f"{name} {rate / 1e3:,.1f} TFLOP/s"


def _machine() -> Case:
    return Case("machine", 1, 0, 0, 0)


def _fastest(this: Run, call: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        this.synchronize()
        start = time.perf_counter()
        call()
        this.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def build(this: Run) -> str:
    """The extension for this device only, and meanwhile the Triton kernels of the suite, into Triton's own cache."""
    if this.stand_in:
        raise Skip("a stand-in builds nothing")
    said = []
    extension = None
    if shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        said.append("no nvcc: the extension was not built")
    else:
        major, minor = torch.cuda.get_device_capability()
        settings = os.environ | {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
        command = (sys.executable, "setup.py", "build_ext", "--inplace")
        extension = subprocess.Popen(command, cwd=ROOT, env=settings)
    count = min(8, os.cpu_count() or 1)
    parts = [
        subprocess.Popen(
            (sys.executable, "-m", "benchmarks.gpu_run.steps", "warm", str(this.out), "--part", f"{part}/{count}")
        )
        for part in range(count)
    ]
    codes = [part.wait() for part in parts]
    said.append(f"Triton kernels compiled by {codes.count(0)} of {count} processes")
    if extension is not None:
        if extension.wait() != 0:
            raise RuntimeError("; ".join((*said, "the extension's build failed")))
        said.append("extension built for this device")
    return "; ".join(said)


def warm(this: Run, part: str) -> str:
    """Call the suite's cases once each, a share of them: compiles their kernels."""
    index, count = map(int, part.split("/"))
    cases = [case for suite in CUDA_BENCH for case in SUITES[suite] if case.direction != "forward" and case.batch > 1]
    for case in cases[index::count]:
        with contextlib.suppress(Unavailable):
            _call("triton", case, this.device)()
    this.synchronize()
    return f"warmed {len(cases[index::count])} cases"


def _call(provider: str, case: Case, device: str) -> Call:
    chosen = PROVIDERS[provider]
    function = chosen.function(case, device)
    x = inputs.feature_map(case, device)
    dy = None if case.direction == "forward" else inputs.cotangent(x)
    return Call(function, x, chosen.parameters(case, device), dy)


def inverse_transform(this: Run) -> str:
    """Is `torch.fft.irfft2` the two-step inverse on this device, and is the reference mixer right on it?"""
    sizes = SIZES[:4] if this.stand_in else SIZES
    differing, worst = [], 0.0
    for size in sizes:
        case = Case("inverse-transform", 2, 32, size, size)
        x = inputs.feature_map(case)
        parameters = inputs.mixer_parameters(case, "cpu")
        wide = [parameter.double() for parameter in parameters]
        truth = reference.mixer(x.double(), wide, THRESHOLD, "relu") - x.double()
        X = reference.spectrum(x.double(), case.blocks)
        M, _ = reference.mask(X, wide, THRESHOLD, "relu")
        Y = torch.complex(*reference.multiply(M, X)).flatten(1, 2).to(torch.complex64).to(this.device)
        columns = torch.fft.ifft(Y, dim=-2, norm="ortho")
        two_step = torch.fft.irfft(columns, n=size, dim=-1, norm="ortho").cpu().double()
        one_call = torch.fft.irfft2(Y, s=(size, size), norm="ortho").cpu().double()
        moved = (t.to(this.device) for t in (x, *parameters))
        mixer = reference.mixer(moved[0], moved[1:], THRESHOLD, "relu").cpu().double() - x.double()
        errors = {
            "irfft2 against the two-step inverse": _distance(one_call, two_step),
            "two-step inverse against float64": _distance(two_step, truth),
            "reference against float64": _distance(mixer, truth),
        }
        for name, error in errors.items():
            bad = "reference" in name and not error <= 1e-6
            reason = "the reference is wrong on this device" if bad else ""
            this.write(case, provider=name, error=error, status="FAIL" if bad else "OK", reason=reason)
        if not errors["irfft2 against the two-step inverse"] <= 1e-5:
            differing.append(size)
        worst = max(worst, errors["reference against float64"])
    differs = f"irfft2 differs at H = W = {differing}" if differing else "irfft2 agrees at every size"
    said = f"{differs} (of {list(sizes)}); the reference's error is at most {worst:.1e}"
    if not worst <= 1e-6:
        raise RuntimeError(said)
    return said


def _distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def launches(this: Run) -> str:
    """Kernels launched by a forward and by a forward and backward pass, by the profiler, with the device's time."""
    shapes = ((16, 8),) if this.stand_in else ((128, 32), (256, 16), (320, 8), (64, 64))
    said = []
    for channels, size in shapes:
        for direction in ("forward", "forward+backward"):
            case = Case("launches", 2 if this.stand_in else 64, channels, size, size, direction=direction)
            for provider in ("eager", *FUSED):
                try:
                    call = _call(provider, case, this.device)
                except Unavailable as reason:
                    this.write(case, provider=provider, status="SKIP", reason=str(reason))
                    continue
                try:
                    count, microseconds, names = _profile(this, call)
                except Exception as error:
                    this.write(case, provider=provider, status="FAIL", reason=f"{type(error).__name__}: {error}"[:300])
                    continue
                print(f"{provider}, {case.name}, {direction}: {count} launches, {microseconds:.1f} us: {names}")
                rate = minimal_bytes(case) / microseconds / 1e3 if microseconds else float("nan")
                unit = "operator calls on a CPU" if this.stand_in else "kernels"
                this.write(case, provider=provider, launches=count, p50_us=microseconds, gb_per_s=rate,
                           protocol=f"profiler, {unit}", samples=1, status="OK")  # fmt: skip
                if provider != "eager" and (channels, size) == shapes[0]:
                    said.append(f"{provider} {direction} {count}")
    return f"launches at {shapes[0][0]}@{shapes[0][1]}: {', '.join(said) or 'no fused backend ran'}"


def _profile(this: Run, call: Call) -> tuple[int, float, dict[str, int]]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    call()
    this.synchronize()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if this.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        call()
        this.synchronize()
    names: dict[str, int] = {}
    microseconds = 0.0
    for event in profiler.events() or []:
        if this.device == "cuda":
            wanted = event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        else:
            wanted = event.cpu_parent is None and not event.name.startswith(("[", "Profiler"))
        if wanted:
            names[event.name[:60]] = names.get(event.name[:60], 0) + 1
            microseconds += event.time_range.elapsed_us()
    return sum(names.values()), microseconds, names


def suite(this: Run) -> str:
    """The benchmark suite; what does not fit into the time is a row that says so."""
    deadline = time.monotonic() + this.seconds
    cases = [case for name in (("quick",) if this.stand_in else CUDA_BENCH) for case in SUITES[name]]
    rows = run.run(cases, this.out / "results.csv", this.meter, deadline=deadline)
    wrong = [row for row in rows if row.status == "FAIL"]
    counts = {status: sum(row.status == status for row in rows) for status in ("OK", "FAIL", "SKIP")}
    said = f"{counts['OK']} measured, {counts['FAIL']} wrong or broken, {counts['SKIP']} skipped"
    if wrong:
        raise RuntimeError(f"{said}; the first: {wrong[0].provider} on {wrong[0].case}: {wrong[0].reason}")
    return said


def tests(this: Run) -> str:
    """pytest -m gpu."""
    parallel = ("-n", "6") if importlib.util.find_spec("xdist") and not this.stand_in else ()
    options = ("-m", "gpu", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", *parallel)
    done = subprocess.run(
        (sys.executable, "-m", "pytest", *options), cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr)
    lines = [line.strip("= ") for line in done.stdout.splitlines() if line.strip()]
    last = lines[-1] if lines else "pytest said nothing"
    if done.returncode == 5 or (done.returncode == 0 and " passed" not in last):
        raise Skip(f"no GPU test ran: {last}")
    if done.returncode != 0:
        raise RuntimeError(last)
    return last


def sanitizer(this: Run) -> str:
    """memcheck, racecheck and initcheck over small calls, with no memory cache of PyTorch's in between."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or this.stand_in:
        raise Skip("compute-sanitizer is not there" if tool is None else "a stand-in has no device code")
    outcomes = {}
    settings = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end = time.monotonic() + 85
    for name in ("memcheck", "racecheck", "initcheck"):
        command = (
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "benchmarks.gpu_run.steps",
            "calls",
        )
        try:
            limit = max(1.0, end - time.monotonic())
            code = subprocess.run((*command, str(this.out)), env=settings, timeout=limit, check=False).returncode
            outcomes[name] = "clean" if code == 0 else "ERRORS" if code == 9 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            outcomes[name] = "not finished"
        status = {"clean": "OK", "not finished": "SKIP"}.get(outcomes[name], "FAIL")
        this.write(SMALL[0]._replace(suite="sanitizer"), case="small calls", provider=name, status=status,
                   reason="" if status == "OK" else outcomes[name])  # fmt: skip
    said = ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items())
    if any(outcome not in ("clean", "not finished") for outcome in outcomes.values()):
        raise RuntimeError(said)
    return said


def calls(this: Run) -> str:
    """Small calls of every fused backend, forward and backward."""
    done = []
    for case in SMALL:
        for provider in FUSED:
            try:
                _call(provider, case._replace(direction="forward+backward"), this.device)()
            except Unavailable:
                continue
            done.append(provider)
    this.synchronize()
    return f"{len(done)} calls of {', '.join(dict.fromkeys(done)) or 'nothing'}"


def models(this: Run) -> str:
    """End-to-end cases, if the package has models."""
    if importlib.util.find_spec("affnet_kernels.models") is None:
        raise Skip("the package has no models")
    raise Skip("the models have no end-to-end cases")


class Skip(Exception):
    """This step cannot run here; the message says why."""


STEPS: dict[str, Callable[[Run], str]] = {
    "environment": environment,
    "build": build,
    "inverse-transform": inverse_transform,
    "launches": launches,
    "suite": suite,
    "tests": tests,
    "sanitizer": sanitizer,
    "calls": calls,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.steps", description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "warm"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--part", default="0/1", help="of the cases to warm")
    options = parser.parse_args(arguments)
    if not options.stand_in and not torch.cuda.is_available():
        print(
            "make gpu: expected a CUDA device, got none; python -m benchmarks gpu OUT --stand-in rehearses on the CPU"
        )
        return 1
    this = Run(options.out, options.stand_in, options.seconds)
    try:
        said = warm(this, options.part) if options.step == "warm" else STEPS[options.step](this)
    except Skip as reason:
        print(reason)
        return SKIPPED
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 1
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
