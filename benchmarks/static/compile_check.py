"""Compiles every GPU kernel for every architecture, without a GPU, and checks it against its limits.

    python -m benchmarks.static.compile_check [--short]

prints the registers, spills, shared memory and matrix instructions of each, and fails if a kernel spills more than its
launch table allows, or takes more shared memory than the table states or the architecture has. Of the one-launch CUDA
kernels it counts the instructions that they execute too (one_launch.py), and fails if they are beyond their bounds.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from affnet_kernels.backends.triton.compilation import backward_job, compile_job, forward_job
from affnet_kernels.backends.triton.launch_table import BACKWARD, FORWARD, find_row
from affnet_kernels.spec import MixerSpec
from benchmarks.static import one_launch
from benchmarks.static.ptxas import cuda_rows

SHARED_LIMIT = {80: 163, 89: 99, 90: 227, 100: 227}  # KiB per CTA, by compute capability
BLOCKS = 8
SHIPPED = ((8, 32), (12, 32), (16, 32), (13, 16), (20, 16), (32, 16), (18, 8), (24, 8), (40, 8))  # D, and H = W
GRADIENTS = ((True, True), (True, False), (False, True))  # of x, of the parameters
OTHERS = ((8, 8), (16, 8), (18, 7), (13, 14), (16, 28), (20, 20), (32, 32), (64, 32))  # 224 pixels, every row's limits


@dataclass(frozen=True)
class Row:
    """One kernel compiled for one architecture."""

    kernel: str
    case: str
    arch: int
    registers: int
    spill: int  # bytes per thread
    spill_allowed: int
    shared: int  # KiB per CTA
    shared_allowed: int
    mma: str  # matrix instructions in the code, by name
    instructions: int
    seconds: float

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.spill > self.spill_allowed:
            faults.append(f"spills {self.spill} bytes, {self.spill_allowed} are allowed")
        limit = min(self.shared_allowed, SHARED_LIMIT[self.arch])
        if self.shared > limit:
            faults.append(f"takes {self.shared} KiB of shared memory, {limit} are allowed")
        return faults


Provider = Callable[[bool], Iterator[Row]]


def triton_rows(short: bool) -> Iterator[Row]:
    """The Triton kernels: every row of their launch tables."""
    import triton

    from affnet_kernels.backends import triton as backend

    if backend.interpreted():
        sys.exit("compile_check: expected Triton's compiler, got its interpreter; unset TRITON_INTERPRET")
    for arch in (90,) if short else (80, 90, 100):
        for dtype in (torch.bfloat16, torch.float32):
            for size, height in ((13, 16), (18, 8)) if short else SHIPPED + OTHERS:
                yield _triton_row(triton, "forward", size, height, dtype, arch)
                for flags in GRADIENTS if arch == 90 and (height == 8 or not short) else GRADIENTS[:1]:
                    yield _triton_row(triton, "backward", size, height, dtype, arch, *flags)


def _triton_row(triton, name, size, height, dtype, arch, input_grad=True, parameter_grads=True) -> Row:
    spec = MixerSpec(64, BLOCKS * size, height, height, BLOCKS, size, dtype, torch.device("cuda"), "relu")
    start = time.perf_counter()
    compiled, row, _ = compile_row(name, spec, arch, input_grad, parameter_grads)
    seconds = time.perf_counter() - start
    only = "" if input_grad and parameter_grads else " dx" if input_grad else " dw"
    tools = triton.knobs.nvidia
    registers, spill, instructions, mma = inspect(compiled.asm["cubin"], tools.cuobjdump.path, tools.nvdisasm.path)
    return Row(
        kernel=f"triton {name}",
        case=f"D={size} {height}x{height} {str(dtype).removeprefix('torch.')}" + only,
        arch=arch,
        registers=registers,
        spill=spill,
        spill_allowed=row.spill,
        shared=-(-compiled.metadata.shared // 1024),
        shared_allowed=row.shared,
        mma=mma,
        instructions=instructions,
        seconds=seconds,
    )


def compile_row(name: str, spec: MixerSpec, arch: int, input_grad: bool = True, parameter_grads: bool = True):
    """The compiled "forward" or "backward" kernel for a call, with its row of the launch table and its tile."""
    capability = divmod(arch, 10)
    flags = () if name == "forward" else (input_grad, parameter_grads)
    job = {"forward": forward_job, "backward": backward_job}[name](spec, capability, *flags)
    row = find_row({"forward": FORWARD, "backward": BACKWARD}[name], spec, capability[0])
    return compile_job(job), row, job.constants[-1]


def inspect(
    cubin: bytes,
    cuobjdump: str,  # paths of the tools
    nvdisasm: str,
) -> tuple[int, int, int, str]:
    """Registers, stack bytes, the number of instructions, and the matrix instructions by name."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
        code = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
    if found is None:
        sys.exit(f"compile_check: expected REG and STACK from cuobjdump, got {usage.stdout!r}")
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)", code.stdout)
    counts = Counter(operation for operation in operations if operation.endswith("MMA"))
    mma = " + ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return int(found[1]), int(found[2]), len(operations), mma


def print_row(row: Row) -> None:
    print(
        f"{row.kernel:16} {row.case:25} sm_{row.arch:<4} {row.registers:4} {row.spill:6} {row.spill_allowed:7} "
        f"{row.shared:7} {row.shared_allowed:7} {row.instructions:6} {row.seconds:5.1f}  {row.mma}"
        + "".join(f"  FAIL: {fault}" for fault in row.faults),
        flush=True,
    )


def one_launch_row(found: one_launch.Count) -> Row:
    """A one-launch kernel of the census; what it executes is in the census's own table."""
    cost, usage = found.once, found.usage
    matrices = {kind[1:]: int(count) for kind, count in sorted(cost.items()) if "MMA" in kind}
    return Row(
        kernel="cuda one launch",
        case=found.shape.words,
        arch=found.arch,
        registers=usage.registers,
        spill=usage.spill,
        spill_allowed=0,
        shared=-(-(found.launch["shared_bytes"] + usage.static_shared) // 1024),
        shared_allowed=SHARED_LIMIT[found.arch],
        mma=" + ".join(f"{count} {name}" for name, count in matrices.items()) + " an image and warp",
        instructions=found.code,
        seconds=0.0,
    )


PROVIDERS: tuple[Provider, ...] = (triton_rows, cuda_rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="a few kernels for one architecture")
    short = parser.parse_args().short
    print(
        f"{'kernel':16} {'case':25} {'arch':7} {'regs':>4} {'spill':>6} {'allowed':>7} "
        f"{'shared':>7} {'allowed':>7} {'code':>6} {'s':>5}  matrix instructions"
    )
    failed = 0
    for provider in PROVIDERS:
        for row in provider(short):
            print_row(row)
            failed += bool(row.faults)
    counted = list(one_launch.census(short))
    for count in counted:
        row = one_launch_row(count)
        print_row(row)
        failed += bool(row.faults)
    failed += one_launch.report(counted)
    print(f"{failed} kernels over their limits" if failed else "all kernels within their limits")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
