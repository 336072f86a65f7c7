"""The steps that check the device and the backends rather than time them."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from affnet_kernels.backends import reference
from affnet_kernels.spec import Parameters
from benchmarks import inputs
from benchmarks.accuracy import distance
from benchmarks.cases import FUSED, PASSES, Case
from benchmarks.environment import ROOT
from benchmarks.gpu_run.context import Run, Skip, call
from benchmarks.measure import Bench, one_line
from benchmarks.providers import PROVIDERS, THRESHOLD, Call, Unavailable, minimal_bytes

SIZES = (7, 8, 14, 16, 20, 28, 32, 40, 64, 128)  # H = W, of the inverse transform
CONTACT = tuple(
    Case("contact", 2, channels, size, size, dtype, "forward+backward")
    for channels, size, dtype in (
        *((104, 16, "float32"), (128, 32, "bfloat16"), (320, 8, "float32"), (128, 32, "float32"), (32, 64, "float32")),
    )
)


def contact(this: Run) -> str:
    """One forward and backward pass of each backend against float64, except what an earlier step has shown right."""
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
        f"{name} cannot run here"
        if set(statuses) == {"SKIP"}
        else f"{name} {statuses.count('OK')} of {len(statuses)} right"
        for name, statuses in outcomes.items()
        if statuses
    ]
    if first:
        raise RuntimeError(f"{', '.join(said)}; the first: {first}")
    if not said:
        raise Skip("an earlier step has shown every backend")
    if not any("OK" in statuses for statuses in outcomes.values()):
        raise Skip(f"no fused backend can run here: {this.rows('contact')[-1].reason}")
    return ", ".join(said)


def inverse_transform(this: Run) -> str:
    """Whether `torch.fft.irfft2` equals the two-step inverse on this device, and whether the reference is right."""
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
            "irfft2 against the two-step inverse": distance(one_call, two_step),
            "two-step inverse against float64": distance(two_step, truth),
            "reference against float64": distance(mixer, truth),
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


def launches(this: Run) -> str:
    """Count the kernels of a forward pass, and of a forward and backward pass, with the profiler."""
    shapes = ((16, 8),) if this.stand_in else ((128, 32), (256, 16), (320, 8), (64, 64))
    said, failed = [], []
    for channels, size in shapes:
        for direction in PASSES:
            case = Case("launches", 2 if this.stand_in else 64, channels, size, size, direction=direction)
            for provider in ("eager", *(FUSED if not this.stand_in else ("cpu",))):
                try:
                    made = call(provider, case, this.device)
                except Unavailable as reason:
                    this.write(case, provider=provider, status="SKIP", reason=str(reason))
                    continue
                unit = "operator calls on a CPU" if this.stand_in else "kernels"
                try:
                    count, microseconds, names = profile_call(this, made)
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


def profile_call(this: Run, made: Call) -> tuple[int, float, dict[str, int]]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    made()
    made()
    this.meter.synchronize()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if this.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        made()
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


def stub_driver(this: Run) -> str:
    """In a rehearsal, compile and launch the Triton kernels for a GPU, on a stub that only records the launches."""
    from tests.stub_driver.driver import build

    folder = this.out / "stub"
    folder.mkdir(exist_ok=True)
    try:
        settings = build(folder) | {"TRITON_CACHE_DIR": str(folder / "cache")}
    except FileNotFoundError as error:
        raise Skip(str(error)) from error
    command = (sys.executable, "-W", "ignore", "-m", "tests.stub_driver.launches")
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["nothing was said"])[-1])
    said = json.loads(done.stdout)
    passes = {name: len(kernels) for name, kernels in said["launched"]["float32"].items()}
    return f"Triton {said['triton']}, launches: {', '.join(f'{name} {count}' for name, count in passes.items())}"
