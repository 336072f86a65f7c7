"""Compiles and launches the Triton kernels on the stand-in for libcuda, and prints what happened as JSON.

    python -m tests.stub_driver.launches

in the environment that `driver.build` returns. It works with whatever Triton comes first on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import triton as backend
from affnet_kernels.backends.triton import device, launch, launch_table
from affnet_kernels.backends.triton.compilation import backward_job, compile_job, forward_job, warm
from affnet_kernels.spec import MixerSpec, Parameters
from tests.stub_driver.driver import Recorder, activate

FACTS = device.Facts((9, 0), 227, 132)
THRESHOLD = 0.01
POINTERS = {"forward_kernel": 8, "backward_kernel": 9, "sum_kernel": 5}


class Call:
    """The two directions of one call of the backend, with random tensors."""

    def __init__(self, dtype: torch.dtype, batch: int = 2, channels: int = 16, size: int = 8, blocks: int = 2) -> None:
        block = channels // blocks
        self.x = torch.randn(batch, channels, size, size).to(dtype)
        self.dy = torch.randn_like(self.x)
        self.parameters = Parameters(
            torch.randn(2, blocks, block, block),
            torch.randn(2, blocks, block),
            torch.randn(2, blocks, block, block),
            torch.randn(2, blocks, block),
        )
        self.spec = MixerSpec.of(self.x, self.parameters.w1)

    def forward(self) -> torch.Tensor:
        return backend.forward(self.spec, self.x, self.parameters, THRESHOLD)

    def backward(self, input_grad: bool = True, parameter_grads: bool = True) -> tuple[torch.Tensor, ...]:
        return backend.backward(self.spec, self.dy, self.x, self.parameters, THRESHOLD, input_grad, parameter_grads)


def main() -> None:
    import triton

    device.facts = lambda _: FACTS  # type: ignore[assignment]
    recorder = activate()
    calls = {"float32": Call(torch.float32), "bfloat16": Call(torch.bfloat16)}
    report: dict[str, Any] = {"triton": triton.__version__}
    steps: list[tuple[int, int]] = []
    kernels = warm([call.spec for call in calls.values()], lambda done, total: steps.append((done, total)))
    report["warm"] = {"kernels": kernels, "progress": steps}
    before = cubins()
    report["launched"] = {name: launched(recorder, call) for name, call in calls.items()}
    report["compiled_after_warm"] = len(cubins() - before)
    report["unaligned"] = unaligned(recorder)
    report["hooks"] = hooks(calls["float32"])
    report["other_launcher"] = other_launcher()
    report["host_us"] = host_times(calls["float32"])
    report["activations"] = compiled_activations()
    report["compiled"] = compiled_shared_memory()
    print(json.dumps(report))


def compiled_shared_memory() -> list[dict[str, Any]]:
    """KiB of shared memory of a few kernels, with every choice of gradients, and what the launch tables state."""
    rows = []
    for block, size in ((13, 16), (18, 8)):
        for dtype in (torch.bfloat16, torch.float32):
            spec = MixerSpec(64, 8 * block, size, size, 8, block, dtype, torch.device("cuda", 0), "silu")
            jobs = {"forward": forward_job(spec, (9, 0)), "backward": backward_job(spec, (9, 0))}
            if size == 8 and dtype == torch.float32:  # without parameter gradients it takes the most
                jobs |= {
                    "backward dx": backward_job(spec, (9, 0), parameter_grads=False),
                    "backward dw": backward_job(spec, (9, 0), input_grad=False),
                }
            for name, job in jobs.items():
                table = launch_table.FORWARD if name == "forward" else launch_table.BACKWARD
                shared = -(-compile_job(job).metadata.shared // 1024)
                allowed = launch_table.find_row(table, spec, 9).shared
                rows.append({"case": f"{name} D={block} {size}x{size} {dtype}", "shared": shared, "allowed": allowed})
    return rows


def compiled_activations() -> dict[str, bool]:
    """Whether a kernel with that activation compiles: each that there is, and one that there is not."""
    import triton

    from tests.activation_kernel import activation_kernel

    types = {"v_ptr": "*fp32", "value_ptr": "*fp32", "vjp_ptr": "*fp32", "N": "constexpr", "ACTIVATION": "constexpr"}
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = {}
    for name in (*ACTIVATIONS, "prelu"):
        source = triton.compiler.ASTSource(activation_kernel, types, {(3,): 128, (4,): name}, {})
        try:
            triton.compile(source, target=target, options=launch.FP_FUSION)
            compiled[name] = True
        except triton.CompilationError:
            compiled[name] = False
    return compiled


def cubins() -> set[Path]:
    return set(Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))


def launched(recorder: Recorder, call: Call) -> dict[str, list[str]]:
    """The kernels that each direction launches: at its first call, at its second, and with fewer gradients.

    Each launch's parameters are checked: addresses of the tensors, the batch, the threshold.
    """
    matrices = launch.forward_plan(call.spec, backend.launch.passes(call.spec, "forward")).matrices
    common = [tensor.data_ptr() for tensor in (call.x, *call.parameters, matrices)]
    names: dict[str, list[str]] = {}
    for which in ("first", "second"):
        recorder.start(POINTERS["forward_kernel"] + 2)
        y = call.forward()
        (forward,) = recorder.launches()
        addresses = forward.parameters[: POINTERS["forward_kernel"]]
        assert (*addresses[:6], addresses[7]) == (*common, y.data_ptr()), addresses
        check_scalars(forward.parameters[POINTERS["forward_kernel"] :], call.spec.batch)
        recorder.start(POINTERS["backward_kernel"] + 2, POINTERS["sum_kernel"])
        dx, *gradients = call.backward()
        backward, reduction = recorder.launches()
        addresses = backward.parameters[: POINTERS["backward_kernel"]]
        assert (*addresses[:7], addresses[8]) == (call.dy.data_ptr(), *common, dx.data_ptr()), addresses
        check_scalars(backward.parameters[POINTERS["backward_kernel"] :], call.spec.batch)
        expected = (addresses[7], *[gradient.data_ptr() for gradient in gradients])
        assert reduction.parameters[: POINTERS["sum_kernel"]] == expected, reduction.parameters
        names[f"{which} forward"] = [forward.name]
        names[f"{which} backward"] = [backward.name, reduction.name]
    return names


def check_scalars(parameters: tuple[int, ...], batch: int) -> None:
    as_float = struct.unpack("<f", (parameters[1] & 0xFFFFFFFF).to_bytes(4, "little"))[0]
    assert (parameters[0] & 0xFFFFFFFF, round(as_float, 6)) == (batch, THRESHOLD), (parameters, as_float)


def unaligned(recorder: Recorder) -> dict[str, bool]:
    """Whether tensors that are not aligned to 16 bytes come to a kernel of their own, before and after aligned ones."""
    call = Call(torch.bfloat16)
    aligned, storage = call.x, torch.zeros(call.x.numel() + 1, dtype=call.x.dtype)
    kernels, before = [], cubins()
    for x in (storage[1:].view(call.x.shape), aligned, storage[1:].view(call.x.shape)):
        call.x = x
        recorder.start(1)
        call.forward()
        kernels.append(recorder.launches()[0].parameters[0] == x.data_ptr())
    return {"addresses": all(kernels), "compiled": len(cubins() - before) == 1}


def hooks(call: Call) -> list[str]:
    """What a hook around launches sees: the name of the kernel."""
    from triton import knobs

    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(hook)
    call.forward()
    knobs.runtime.launch_enter_hook.remove(hook)
    call.forward()
    return seen


def other_launcher() -> list[tuple[int, ...]]:
    """What is launched by a Triton whose launcher cannot parse the arguments."""
    from triton.compiler import CompiledKernel

    seen: list[tuple[int, ...]] = []

    class Other(CompiledKernel):  # type: ignore[misc]
        run, function, packed_metadata = (lambda only_one: None), 0, ()

        def __init__(self) -> None: ...

        def __del__(self) -> None: ...

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments: seen.append(arguments)

    run = launch.compiled_launch(Other(), (1, 1, 1), 0)
    assert run is not None
    run(1, 2)
    run(3)
    return seen


def host_times(call: Call) -> dict[str, float]:
    """Median microseconds of host time per call, alternating with one launch the way Triton's JIT does it."""
    from affnet_kernels.kernels.mixer import forward_kernel

    plan = launch.forward_plan(call.spec, 3)
    job = forward_job(call.spec, (9, 0))
    tensors = (call.x, *call.parameters, plan.matrices, call.parameters.w1, call.x)
    runs: dict[str, Callable[[], Any]] = {
        "forward": call.forward,
        "backward": call.backward,
        "launch by the JIT": lambda: forward_kernel[(2,)](
            *tensors, call.spec.batch, THRESHOLD, *job.constants, **dict(job.options)
        ),
    }
    times: dict[str, list[int]] = {name: [] for name in runs}
    for _ in range(2000):
        for name, run in runs.items():
            start = time.perf_counter_ns()
            run()
            times[name].append(time.perf_counter_ns() - start)
    return {name: statistics.median(values) / 1e3 for name, values in times.items()}


if __name__ == "__main__":
    main()
