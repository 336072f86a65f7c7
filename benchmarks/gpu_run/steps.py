"""The programs of `make gpu`: `python -m benchmarks.gpu_run.steps NAME OUT`, whose last line is the outcome."""

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
from affnet_kernels.backends import as_lines
from benchmarks import run
from benchmarks.cases import SUITES, Case
from benchmarks.environment import ROOT, smi, version
from benchmarks.gpu_run.checks import contact, inverse_transform, launches, stub_driver
from benchmarks.gpu_run.context import Run, Skip, call
from benchmarks.gpu_run.driver import SKIPPED, UNUSABLE
from benchmarks.measure import one_line
from benchmarks.providers import Unavailable

SANITIZED = Case("sanitizer", 2, 26, 7, 7, direction="forward+backward", blocks=2)
TESTS_FIRST = ("test_gpu_one_launch.py", "test_triton.py", "test_gpu_cuda.py", "test_forward.py", "test_backward.py")
# Beside the step of its own that runs the sanitizer: each of these tests takes a minute or more.
TESTS_LEFT_OUT = "sanitizer"


def device(this: Run) -> str:
    """Driver, clocks and packages; and the copy and product rates that the other results are judged by."""
    print(f"python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    packages = ("torch", "triton", "numpy", "pytest", "pytest-xdist", "scikit-learn", "matplotlib", "tqdm")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print(f"nvcc: {shutil.which('nvcc')}, compute-sanitizer: {shutil.which('compute-sanitizer')}")
    asked = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "persistence_mode")
    print(f"nvidia-smi {', '.join(asked)}: {smi(*asked) or 'no answer'}")
    print(as_lines(available_backends()))
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


def build(this: Run) -> str:
    """Build the extension for this device, and meanwhile fill Triton's cache with the headline's kernels."""
    extension = None
    if this.stand_in:
        said = [_copy_extension()]
    elif shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        said = ["no nvcc: the extension was not built"]
    else:
        said = []
        major, minor = torch.cuda.get_device_capability()
        settings = os.environ | {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "AFFNET_REQUIRE_EXTENSION": "1"}
        extension = subprocess.Popen((sys.executable, "setup.py", "build_ext", "--inplace"), cwd=ROOT, env=settings)
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
    elif rows and not good:
        said.append(rows[0].reason)
    if failed or not built or not good:
        raise RuntimeError("; ".join(said))
    return "; ".join(said)


def _copy_extension() -> str:
    """In a rehearsal the extension of the tree that was copied appears only now, as one that is built would."""
    files = list(Path(os.environ.get("AFFNET_PREBUILT", "none")).glob("_C*"))
    for file in files:
        shutil.copy(file, ROOT / "affnet_kernels")
    return "a built extension was copied" if files else "a stand-in builds no extension"


def warm(this: Run) -> str:
    """Call every COUNT-th of the headline's cases once (the argument is INDEX/COUNT); one that fails is a row too."""
    index, count = map(int, this.arguments[0].split("/"))
    cases = [this.small(case) for case in SUITES["shipped"].cases if case.direction != "forward"]
    cases = list(dict.fromkeys(case._replace(suite="warm") for case in cases))[index::count]
    for case in cases:
        start = time.perf_counter()
        try:
            call("triton", case, this.device)()
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


def suites(this: Run) -> str:
    """Measure the suites that the arguments name; a case for which no time is left is a row that says so."""
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
    """Run pytest -m gpu; its output goes to the log test by test, so that a killed run leaves what it had."""
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
    """Run memcheck, racecheck and initcheck side by side, without PyTorch's memory cache, which would hide overruns."""
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
            call(provider, SANITIZED, this.device)()
        except Unavailable:
            continue
        done.append(provider)
    this.meter.synchronize()
    return f"calls of {', '.join(done) or 'nothing'}"


PROGRAMS: dict[str, Callable[[Run], str]] = {
    function.__name__: function
    for function in (
        device,
        contact,
        build,
        warm,
        inverse_transform,
        launches,
        suites,
        tests,
        sanitizer,
        calls,
        stub_driver,
    )
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
