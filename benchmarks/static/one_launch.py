"""The one-launch CUDA kernels of the released networks' maps: what their machine code executes, against its bounds."""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.static.census import Usage, compile_cuda
from benchmarks.static.costs import Cost
from benchmarks.static.graph import Graph
from benchmarks.static.sass import Block, functions
from benchmarks.tables import markdown

BATCH, BLOCKS, WARP = 64, 8, 32
# Not 8.0, where the compiler moves the branch that closes the loop of the images, so that it is not found. There the
# bfloat16 kernel of 24 channels at 8 x 8 spills 48 bytes.
CAPABILITIES = (90, 100)
REGISTERS, THREADS, CTAS, RESERVED = 65536, 2048, 32, 1024  # of a multiprocessor; bytes that a CTA takes beside its own
SHARED = {80: 164, 89: 100, 90: 228, 100: 228}  # KiB of a multiprocessor
# Thread instructions that a copy leaves time for, an element: four warps' a clock and 18.56 bytes a clock for each of
# an H200's multiprocessors.
FLOOR = {"bfloat16": 27.6, "float16": 27.6, "float32": 55.2}

RELEASED = ((8, 32), (12, 32), (16, 32), (13, 16), (20, 16), (32, 16), (18, 8), (24, 8), (40, 8))  # D, and H = W
OTHERS = ((8, 28), (12, 28), (16, 28), (13, 14), (20, 14), (32, 14), (18, 7), (24, 7), (40, 7))  # at 224 pixels


class Shape(NamedTuple):
    """A map of one block."""

    size: int  # H = W
    channels: int  # D
    dtype: str

    @property
    def words(self) -> str:
        return f"D={self.channels} {self.size}x{self.size} {self.dtype}"


@dataclass(frozen=True)
class Count:
    """One kernel for one shape, compiled for one architecture."""

    shape: Shape
    arch: int
    launch: Mapping[str, Any]  # what `_C.cuda_path` says
    usage: Usage
    once: Cost  # of a warp, for one iteration of the loop over images, with SiLU
    relu: Cost  # the same with ReLU
    unnamed: list[str]  # loops in it that do not say how often they run
    before: Cost  # that loop, of which a loop without a name counts once
    code: int  # instructions of the whole kernel

    @property
    def elements(self) -> int:
        """That a CTA's warps take together in one iteration."""
        return self.launch["images"] * self.shape.channels * self.shape.size**2

    @property
    def warps(self) -> int:
        return self.launch["threads"] // WARP

    def per_element(self, count: float) -> float:
        """Of what each warp does once, in threads."""
        return count * WARP * self.warps / self.elements

    @property
    def instructions(self) -> float:
        return self.per_element(self.once.instructions)

    @property
    def relu_instructions(self) -> float:
        return self.per_element(self.relu.instructions)

    @property
    def silu_over_relu(self) -> float:
        return self.once.instructions / self.relu.instructions

    @property
    def shared_bytes(self) -> float:
        """Of shared memory an element, without bank conflicts."""
        return self.once["#shared bytes"] * self.warps / self.elements

    @property
    def ctas(self) -> int:
        """On a multiprocessor at once."""
        registers = -(-self.usage.registers // 8) * 8 * self.launch["threads"]
        shared = self.launch["shared_bytes"] + self.usage.static_shared + RESERVED
        return min(CTAS, THREADS // self.launch["threads"], REGISTERS // registers, SHARED[self.arch] * 1024 // shared)


def plan(shape: Shape, arch: int, batch: int = BATCH) -> dict[str, Any]:
    """The path and the launch of a forward call, from csrc/cuda/fused/path.h."""
    from affnet_kernels.backends.native import EXTENSION

    if EXTENSION is None:
        raise ValueError("one_launch: expected the compiled extension, which has the launch plan, got none")
    size, D = shape.size, shape.channels
    return EXTENSION.cuda_path(shape.dtype, batch, size, size, BLOCKS, D, D, arch)


def trips(shape: Shape, launch: Mapping[str, Any]) -> dict[str, float]:
    """How often a warp runs each loop of the kernel, on the mean over the warps of a CTA."""
    return (_trips_single if launch["kernel"].startswith("single") else _trips_half)(shape, launch)


def _trips_single(shape: Shape, launch: Mapping[str, Any]) -> dict[str, float]:
    """A thread has a transform at a time, a warp some tiles of 16 frequencies: regular ones, then special ones."""
    N, images, warps = shape.size, launch["images"], launch["threads"] // WARP
    planes = images * math.ceil(shape.channels / 2)
    items = math.ceil(planes / 4) * 32 if N == 8 else planes * N

    def units(frequencies: int, rows: int) -> float:
        return math.ceil(math.ceil(images * frequencies / rows) / launch["unit_tiles"]) / warps

    quads = int(re.findall(r"\d+", launch["kernel"])[-1])
    return {
        "transforms": items / launch["threads"],
        "regular": units(N * ((N - 1) // 2), 16),
        "special": units((2 - N % 2) * ((N + 1) // 2), 8),
        "inputs": quads / (4 if quads % 4 == 0 else 2),  # of a map with too many channels for the registers
        "outputs": quads / 2,
    }


def _trips_half(shape: Shape, launch: Mapping[str, Any]) -> dict[str, float]:
    """A warp has a plane at a time, and some tiles of 16 slots of the spectrum."""
    warps, tiles = launch["threads"] // WARP, math.ceil(shape.size / 16)
    slots = (128 * tiles**2 + 16 * tiles) // 16
    row_bytes = 2 * shape.size
    granule = max(size for size in (2, 4, 8, 16) if row_bytes % size == 0)
    return {
        "planes": shape.channels / warps,
        "slots": math.ceil(slots / launch["unit_tiles"]) / warps,
        "granules": math.ceil(shape.size / (WARP // (row_bytes // granule))),  # of a plane with padding
        "channels": math.ceil(shape.channels / WARP),
        "hundreds": 0,  # powers of two that only a plane of extreme numbers has
    }


def compile_kernels(names: Iterable[str], arch: int) -> dict[str, tuple[Usage, list[Block]]]:
    """Usage and code of kernels, given and found by names such as `half_forward_kernel<2, 4, 1>`."""
    lines = ['#include "cuda/fused/half_forward.cuh"', '#include "cuda/fused/single_forward.cuh"', "namespace affnet {"]
    for name in sorted(set(names)):
        arguments = "HalfArguments" if name.startswith("half") else "SingleArguments"
        lines.append(f"template __global__ void {name}({arguments});")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cu"
        source.write_text("\n".join([*lines, "}  // namespace affnet", ""]))
        found = compile_cuda(source, arch)
    blocks = functions(found.code)
    return {template_name(mangled): (usage, blocks[mangled]) for mangled, usage in found.usage.items()}


def template_name(mangled: str) -> str:
    """`single_forward_kernel<32, 32, 4>` of a mangled name."""
    found = re.search(r"\d+([a-z_]+_kernel)I((?:L[a-z]\d+E)+)EEv", mangled)
    if found is None:
        raise ValueError(f"one_launch: expected the name of a kernel, got {mangled}")
    arguments = re.findall(r"\d+", found[2])
    return f"{found[1]}<{', '.join(arguments)}>"


def counts(shapes: Iterable[Shape], arch: int) -> list[Count]:
    """Of the shapes that are one launch on such a device."""
    plans = {shape: launch for shape in shapes if (launch := plan(shape, arch))["path"] == "one-launch"}
    kernels = compile_kernels((launch["kernel"] for launch in plans.values()), arch)
    found = []
    for shape, launch in plans.items():
        usage, blocks = kernels[launch["kernel"]]
        silu, relu = Graph(blocks, "Silu"), Graph(blocks, "Relu")
        often = trips(shape, launch)
        once = (silu.once("images", often), relu.once("images", often))
        code = sum(len(block.instructions) for block in blocks)
        before = silu.cost(often | {"images": 0})
        found.append(Count(shape, arch, launch, usage, *once, silu.unnamed("images"), before, code))
    return found


# Thread instructions an element that a forward kernel may execute with ReLU, by type and H = W; for one D, or for all.
MOST_INSTRUCTIONS: dict[tuple[str, int, int | None], float] = {
    ("bfloat16", 32, 16): 29,
    ("float32", 32, 16): 66,
    ("bfloat16", 16, None): 45,
}
MOST_SILU_OVER_RELU = 1.15


def bound(shape: Shape) -> float | None:
    keys = (shape.dtype, shape.size, shape.channels), (shape.dtype, shape.size, None)
    return next((MOST_INSTRUCTIONS[key] for key in keys if key in MOST_INSTRUCTIONS), None)


def faults(found: Count) -> list[str]:
    faults, most = [], bound(found.shape)
    if most is not None and found.relu_instructions > most:
        faults.append(f"{found.relu_instructions:.1f} instructions an element, {most} are allowed")
    if found.silu_over_relu > MOST_SILU_OVER_RELU:
        faults.append(
            f"SiLU takes {found.silu_over_relu:.2f} times ReLU's instructions, {MOST_SILU_OVER_RELU} is allowed"
        )
    if found.usage.spill > 0 and found.shape[:2][::-1] in RELEASED:
        faults.append(f"spills {found.usage.spill} bytes, none is allowed for a released network's map")
    faults += [f"a loop does not say how often it runs: {line}" for line in found.unnamed]
    return faults


KIND_COLUMNS = (
    "tensor",
    "float",
    "half",
    "convert",
    "integer",
    "shared",
    "global",
    "special",
    "exchange",
    "move",
    "control",
)


def table(found: Iterable[Count], wavefronts: Mapping[Shape, float]) -> str:
    """The figures of each shape, thread instructions an element by kind, against its bound and what a copy leaves.

    "conflicts" are the transactions of shared memory over those that its bytes need.
    """
    header = [
        *(
            "kernel",
            "arch",
            "regs",
            "spill",
            "KiB",
            "CTAs",
            "ReLU",
            "at most",
            "SiLU",
            "a copy",
            "shared B",
            "conflicts",
        ),
        *KIND_COLUMNS,
        "other",
    ]

    def cells(c: Count) -> list[str]:
        most = bound(c.shape)
        kinds = {kind: c.per_element(n) for kind, n in c.once.items() if kind[0] != "#"}
        other = sum(n for kind, n in kinds.items() if kind not in KIND_COLUMNS)
        return [
            c.shape.words,
            *(str(c.arch), str(c.usage.registers), str(c.usage.spill), f"{c.launch['shared_bytes'] / 1024:.0f}"),
            *(str(c.ctas), f"{c.relu_instructions:.1f}", "-" if most is None else str(most), f"{c.instructions:.1f}"),
            *(str(FLOOR[c.shape.dtype]), f"{c.shared_bytes:.1f}"),
            f"{wavefronts[c.shape]:.2f}" if c.shape in wavefronts else "-",
            *(f"{kinds.get(kind, 0):.1f}" for kind in KIND_COLUMNS),
            f"{other:.1f}",
        ]

    return markdown(header, map(cells, found))


def census(short: bool) -> Iterator[Count]:
    """The maps of the released networks at 256 pixels, and for an H100 those at 224."""
    for arch in (90,) if short else CAPABILITIES:
        sizes = RELEASED[2:3] if short else (*RELEASED, *OTHERS) if arch == 90 else RELEASED
        yield from counts([Shape(size, D, dtype) for dtype in ("bfloat16", "float32") for D, size in sizes], arch)


def report(found: list[Count]) -> int:
    """Print the table and what is beyond its bounds; returns how much that is."""
    from benchmarks.static.wavefronts import wavefronts

    print(table(found, wavefronts(found)), flush=True)
    failed = 0
    for each in found:
        for fault in faults(each):
            failed += 1
            print(f"FAIL: {each.shape.words}, sm_{each.arch}: {fault}")
    return failed


if __name__ == "__main__":
    sys.exit(report(list(census(short=False))) > 0)
