"""The programs of `make gpu`, each `python -m benchmarks.gpu_run.steps NAME OUT`; its last line is its outcome."""

from __future__ import annotations

import argparse
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
from affnet_kernels.spec import Parameters
from benchmarks import inputs, run
from benchmarks.cases import FUSED, PASSES, SUITES, Case
from benchmarks.environment import ROOT, smi, version
from benchmarks.gpu_run.driver import SKIPPED, UNUSABLE
from benchmarks.measure import Bench, Meter, one_line
from benchmarks.providers import PROVIDERS, THRESHOLD, Call, Unavailable, minimal_bytes
from benchmarks.results import Result, Writer, read

SIZES = (7, 8, 14, 16, 20, 28, 32, 40, 64, 128)  # H = W, of the inverse transform
CONTACT = tuple(
    Case("contact", 2, channels, size, size, dtype, "forward+backward")
    for channels, size, dtype in (
        *((104, 16, "float32"), (128, 32, "bfloat16"), (320, 8, "float32"), (128, 32, "float32"), (32, 64, "float32")),
    )
)
SANITIZED = Case("sanitizer", 2, 26, 7, 7, direction="forward+backward", blocks=2)
TESTS_FIRST = ("test_triton.py", "test_gpu_cuda.py", "test_forward.py", "test_backward.py")
# Beside the step of its own that runs the sanitizer: each of these tests takes a minute or more.
TESTS_LEFT_OUT = "sanitizer"


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
        size = min(case.height, 8), min(case.width, 8)
        # Triton's interpreter truncates to bfloat16, where a device rounds.
        dtype = "float16" if case.dtype == "bfloat16" else case.dtype
        return case._replace(batch=1, channels=2 * case.blocks, height=size[0], width=size[1], dtype=dtype)


def device(this: Run) -> str:
    """Driver, clocks, packages, commit; the ceilings that everything else is judged by."""
    print(f"python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    packages = ("torch", "triton", "numpy", "pytest", "pytest-xdist", "scikit-learn", "matplotlib", "tqdm")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print(f"nvcc: {shutil.which('nvcc')}, compute-sanitizer: {shutil.which('compute-sanitizer')}")
    asked = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "persistence_mode")
    print(f"nvidia-smi {', '.join(asked)}: {smi(*asked) or 'no answer'}")
    print(explain(available_backends()))
    rates = [f"copy {_copy_rate(this):,.0f} GB/s"]
    for dtype, tf32 in (("bfloat16", False), ("float32", True), ("float32", False)):
        rates.append(_product_rate(this, dtype, tf32))
    return ", ".join(rates)


def _copy_rate(this: Run) -> float:
    count = (1 << 30) if this.device == "cuda" else (1 << 22)  # bytes
    a = torch.randint(0, 255, (count,), dtype=torch.uint8, device=this.device)
    b = torch.empty_like(a)
    seconds = this.meter.fastest(lambda: b.copy_(a), 10)
    rate = 2 * count / seconds / 1e9
    this.write(_machine(), case="copy", provider="copy", protocol="fastest of 10", p50_us=seconds * 1e6,
               gb_per_s=rate, input="random", status="OK")  # fmt: skip
    return rate


def _product_rate(this: Run, dtype: str, tf32: bool) -> str:
    size = 8192 if this.device == "cuda" else 512
    a, b = (torch.randn(size, size, device=this.device).to(getattr(torch, dtype)) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    seconds = this.meter.fastest(lambda: a @ b, 10)
    torch.backends.cuda.matmul.allow_tf32 = before
    name = f"matmul {'tf32' if tf32 else dtype}"
    rate = 2 * size**3 / seconds / 1e9
    this.write(_machine(), case=f"{size}^3", provider=name, dtype=dtype, protocol="fastest of 10",
               p50_us=seconds * 1e6, gflop_per_s=rate, input="random", status="OK")  # fmt: skip
    return f"{name} {rate / 1e3:,.1f} TFLOP/s"


def _machine() -> Case:
    return Case("machine", 1, 0, 0, 0)


def contact(this: Run) -> str:
    """One forward and backward pass of each backend against float64, but for those that an earlier step has shown."""
    done = {(row.provider, row.case, row.dtype) for row in this.rows("contact") if row.status == "OK"}
    outcomes: dict[str, list[str]] = {name: [] for name in this.fused}
    first = ""
    for case in map(this.small, CONTACT):
        bench = Bench(this.meter, case)
        for name in this.fused:
            if (name, case.name, case.dtype) in done:
                continue
            done.add((name, case.name, case.dtype))
            start, error = time.perf_counter(), float("nan")
            try:
                _, error, bound = bench.check(PROVIDERS[name])
                this.meter.synchronize()
                status = "OK" if error <= bound else "FAIL"
                reason = "" if status == "OK" else f"relative L2 error {error:.1e}, expected at most {bound:.1e}"
            except Unavailable as why:
                status, reason = "SKIP", str(why)
            except Exception as why:
                status, reason = "FAIL", one_line(why)
            seconds = time.perf_counter() - start
            this.write(case, provider=name, status=status, reason=reason, error=error, p50_us=seconds * 1e6)
            print(
                f"{status} {name}, {case.name}, {case.dtype}: error {error:.1e}, {seconds:.1f} s {reason}", flush=True
            )
            outcomes[name].append(status)
            if status == "FAIL":
                first = first or f"{name} on {case.name} {case.dtype}: {reason}"
    said = [
        f"{name} {statuses.count('OK')} of {len(statuses)} right" for name, statuses in outcomes.items() if statuses
    ]
    if first:
        raise RuntimeError(f"{', '.join(said)}; the first: {first}")
    if not said:
        raise Skip("an earlier step has shown every backend")
    if not any("OK" in statuses for statuses in outcomes.values()):
        raise Skip(f"no fused backend can run here: {this.rows('contact')[-1].reason}")
    return ", ".join(said)


def build(this: Run) -> str:
    """The extension for this device only, and meanwhile the headline's Triton kernels, into Triton's own cache."""
    extension = None
    said = []
    if this.stand_in or (shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME")):
        said.append("a stand-in builds no extension" if this.stand_in else "no nvcc: the extension was not built")
    else:
        major, minor = torch.cuda.get_device_capability()
        settings = os.environ | {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
        command = (sys.executable, "setup.py", "build_ext", "--inplace")
        extension = subprocess.Popen(command, cwd=ROOT, env=settings)
    count = 1 if this.stand_in else max(1, min(10, (os.cpu_count() or 1) - 4))
    command = (sys.executable, "-m", "benchmarks.gpu_run.steps", "warm", str(this.out))
    rest = ("--stand-in",) if this.stand_in else ()
    parts = [subprocess.Popen((*command, f"{part}/{count}", *rest)) for part in range(count)]
    for part in parts:
        part.wait()
    built = extension is None or extension.wait() == 0
    if extension is not None:
        said.append("extension built for this device" if built else "the extension's build failed, see the log")
    rows = this.rows("warm")
    failed = [row for row in rows if row.status == "FAIL"]
    good = sum(row.status == "OK" for row in rows)
    said.append(f"Triton kernels of {good} of {len(rows)} cases compiled")
    if failed:
        said.append(f"the first error: {failed[0].case} {failed[0].dtype}: {failed[0].reason}")
    if failed or not built or not good:
        raise RuntimeError("; ".join(said))
    return "; ".join(said)


def warm(this: Run) -> str:
    """Call a part of the headline's cases, `INDEX/COUNT`, once each: a row for each, whatever becomes of the others."""
    index, count = map(int, this.arguments[0].split("/"))
    cases = [this.small(case) for case in SUITES["shipped"].cases if case.direction != "forward"]
    cases = list(dict.fromkeys(case._replace(suite="warm") for case in cases))[index::count]
    for case in cases:
        start = time.perf_counter()
        try:
            _call("triton", case, this.device)()
            this.meter.synchronize()
            status, reason = "OK", ""
        except Unavailable as why:
            status, reason = "SKIP", str(why)
        except Exception as why:
            status, reason = "FAIL", one_line(why)
        seconds = time.perf_counter() - start
        this.write(case, provider="triton", status=status, reason=reason, p50_us=seconds * 1e6)
        print(f"{status} {case.name} {case.dtype}: {seconds:.1f} s {reason}", flush=True)
    return f"called {len(cases)} cases"


def _call(provider: str, case: Case, device: str) -> Call:
    chosen = PROVIDERS[provider]
    function = chosen.build(case, device)
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
        parameters = Parameters(*inputs.mixer_parameters(case, "cpu"))
        wide = Parameters(*(parameter.double() for parameter in parameters))
        truth = reference.mixer(x.double(), wide, THRESHOLD, case.activation) - x.double()
        X = reference.spectrum(x.double(), case.blocks)
        M, _ = reference.mask(X, wide, THRESHOLD, case.activation)
        Y = torch.complex(*reference.multiply(M, X)).flatten(1, 2).to(torch.complex64).to(this.device)
        columns = torch.fft.ifft(Y, dim=-2, norm="ortho")
        two_step = torch.fft.irfft(columns, n=size, dim=-1, norm="ortho").cpu().double()
        one_call = torch.fft.irfft2(Y, s=(size, size), norm="ortho").cpu().double()
        on_device, *moved = (t.to(this.device) for t in (x, *parameters))
        mixer = reference.mixer(on_device, Parameters(*moved), THRESHOLD, case.activation).cpu().double() - x.double()
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
    said, failed = [], []
    for channels, size in shapes:
        for direction in PASSES:
            case = Case("launches", 2 if this.stand_in else 64, channels, size, size, direction=direction)
            for provider in ("eager", *(FUSED if not this.stand_in else ("cpu",))):
                try:
                    call = _call(provider, case, this.device)
                except Unavailable as reason:
                    this.write(case, provider=provider, status="SKIP", reason=str(reason))
                    continue
                unit = "operator calls on a CPU" if this.stand_in else "kernels"
                try:
                    count, microseconds, names = _profile(this, call)
                    if count == 0:
                        raise RuntimeError("the profiler recorded no kernel")
                except Exception as error:
                    failed.append(f"{provider} on {case.name}: {one_line(error)}")
                    this.write(case, provider=provider, status="FAIL", reason=one_line(error))
                    continue
                print(f"{provider}, {case.name}, {direction}: {count} launches, {microseconds:.1f} us: {names}")
                rate = minimal_bytes(case) / microseconds / 1e3 if microseconds else float("nan")
                this.write(case, provider=provider, launches=count, p50_us=microseconds, gb_per_s=rate,
                           protocol=f"profiler, {unit}", samples=1, status="OK")  # fmt: skip
                if provider != "eager" and (channels, size) == shapes[0]:
                    said.append(f"{provider} {direction} {count}")
    outcome = f"launches at {shapes[0][0]}@{shapes[0][1]}: {', '.join(said) or 'no fused backend ran'}"
    if failed:
        raise RuntimeError(f"{outcome}; the first failure: {failed[0]}")
    return outcome


def _profile(this: Run, call: Call) -> tuple[int, float, dict[str, int]]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    call()
    this.meter.synchronize()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if this.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        call()
        this.meter.synchronize()
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


def suites(this: Run) -> str:
    """The suites that the arguments name; a case that does not fit into the time is a row that says so."""
    named = [case for name in this.arguments for case in SUITES[name].cases]
    cases = list(dict.fromkeys(map(this.small, named)))
    deadline = time.monotonic() + this.until - time.time()
    rows = run.run(cases, this.out / "results.csv", this.meter, deadline=deadline)
    wrong = [row for row in rows if row.status == "FAIL"]
    counts = {status: sum(row.status == status for row in rows) for status in ("OK", "FAIL", "SKIP")}
    said = f"{counts['OK']} measured, {counts['FAIL']} wrong or broken, {counts['SKIP']} skipped"
    if wrong:
        raise RuntimeError(f"{said}; the first: {wrong[0].provider} on {wrong[0].case}: {wrong[0].reason}")
    return said


def tests(this: Run) -> str:
    """pytest -m gpu, streamed: what ran before the time ends is in the log, test by test."""
    folder, rank = ROOT / "tests", {name: place for place, name in enumerate(TESTS_FIRST)}
    names = [path.name for path in folder.glob("test_*.py")]
    files = [str(folder / name) for name in sorted(names, key=lambda name: (rank.get(name, len(rank)), name))]
    options = ("-m", "gpu", "-k", f"not {TESTS_LEFT_OUT}", "-v", "--durations=15", "-p", "no:cacheprovider",
               "--continue-on-collection-errors")  # fmt: skip
    if importlib.util.find_spec("xdist") and not this.stand_in:
        options = (*options, "-n", "12")
    command = (sys.executable, "-m", "pytest", *options, *files)
    last = "pytest said nothing"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip("= \n") or last
    code = process.wait()
    if code == 5 or (code == 0 and " passed" not in last):
        raise Skip(f"no GPU test ran: {last}")
    if code != 0:
        raise RuntimeError(last)
    return last


def sanitizer(this: Run) -> str:
    """memcheck, racecheck and initcheck side by side, with no memory cache of PyTorch's to hide an overrun."""
    tool = shutil.which("compute-sanitizer")
    if tool is None and not this.stand_in:
        raise Skip("compute-sanitizer is not on PATH")
    settings = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    calls = (sys.executable, "-m", "benchmarks.gpu_run.steps", "calls", str(this.out))
    running = {}
    for name in ("memcheck",) if this.stand_in else ("memcheck", "racecheck", "initcheck"):
        checked = (*calls, "--stand-in") if this.stand_in else (tool, "--tool", name, "--error-exitcode", "9", *calls)
        file = (this.out / f"{name}.log").open("w+")
        running[name] = subprocess.Popen(checked, env=settings, stdout=file, stderr=subprocess.STDOUT), file
    outcomes = {}
    for name, (process, file) in running.items():
        try:
            code: int | None = process.wait(timeout=max(1.0, this.until - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        file.seek(0)
        output = file.read()
        file.close()
        print(f"== {name}\n{output[-4000:]}", flush=True)
        if code is None or "Device not supported" in output:
            outcomes[name] = "SKIP", "not finished in time" if code is None else "the tool does not support this device"
        else:
            outcomes[name] = (
                ("OK", "clean") if code == 0 else ("FAIL", "errors" if code == 9 else f"exit status {code}")
            )
        status, reason = outcomes[name]
        this.write(SANITIZED, case="small calls", provider=name, status=status, reason=reason)
    said = ", ".join(f"{name}: {reason}" for name, (_, reason) in outcomes.items())
    statuses = {status for status, _ in outcomes.values()}
    if "FAIL" in statuses:
        raise RuntimeError(said)
    if statuses == {"SKIP"}:
        raise Skip(said)
    return said


def calls(this: Run) -> str:
    """A small call of every fused backend, forward and backward."""
    done = []
    for provider in this.fused:
        try:
            _call(provider, SANITIZED, this.device)()
        except Unavailable:
            continue
        done.append(provider)
    this.meter.synchronize()
    return f"calls of {', '.join(done) or 'nothing'}"


PROGRAMS: dict[str, Callable[[Run], str]] = {
    function.__name__: function
    for function in (device, contact, build, warm, inverse_transform, launches, suites, tests, sanitizer, calls)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.steps", description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("out", type=Path)
    parser.add_argument("arguments", nargs="*", help="suites, or the part of the cases to warm")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, with tiny shapes")
    options = parser.parse_args(arguments)
    if not options.stand_in and not torch.cuda.is_available():
        print(
            "make gpu: expected a CUDA device that this PyTorch can use, got none; run it where there is one, or "
            "rehearse it here with `make gpu-rehearsal`"
        )
        return UNUSABLE
    try:
        said = PROGRAMS[options.program](Run(options.out, options.stand_in, options.arguments))
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
