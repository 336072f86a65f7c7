"""Predicts the times of the forward pass on each of its ways from compiled code, to judge the first measurements by.

    python -m benchmarks.static.predict

It prints four lower bounds for an H200 at batch 64: the bytes of x and y at 4.3 TB/s; the matrix products, padding
included, at 62 % of 989 TFLOP/s in half precision, with three products for each one in float32 (and TF32 at half that
rate); the instructions of the compiled code, each chunk's or loop's code counted as often as it runs, at four per cycle
and 1.755 GHz on 132 multiprocessors; and the bytes of shared memory at 128 per cycle, where they are counted. The
prediction is an estimate on top: twice the highest bound, for latencies and barriers, plus 3 us for a launch.

By cuFFT, "planned", every step reads and writes the whole tensor or its half spectrum; none of it is taken to be in a
cache. The share is a copy's time, of x and y at 4.3 TB/s, in the predicted one.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from typing import NamedTuple

import torch

from affnet_kernels.backends.triton.tile import Tile
from affnet_kernels.spec import MixerSpec
from benchmarks.cases import SHIPPED
from benchmarks.static import one_launch
from benchmarks.static.compile_check import BLOCKS, compile_row

BATCH, MULTIPROCESSORS, ISSUED_PER_US = 64, 132, 4 * 1755
BYTES_PER_US, FLOP_PER_US = 4.3e6, 0.62 * 989e6


def instructions(cubin: bytes, tile: Tile) -> int:
    """The instructions that a warp issues for a tile, whose code for a chunk is a function called once per chunk."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.nvdisasm.path
        code = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    channel_chunks = math.ceil(tile.D / tile.CHANNEL_CHUNK)
    frequency_chunks = math.ceil(tile.H * tile.F / tile.FREQUENCY_CHUNK) if tile.STAGED else 0
    times = {"stage_chunk": channel_chunks, "add_chunk": channel_chunks, "map_rows": frequency_chunks}
    total, weight = 0, 1
    for line in code.splitlines():
        if line.endswith(":") and not line.startswith("."):
            weight = next((count for step, count in times.items() if step in line), 1)
        elif re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\d+\s+)?[A-Z]", line):
            total += weight
    return total


def products(tile: Tile) -> int:
    """Floating-point operations in one pass of a tile's matrix products, the Nyquist column left out."""
    planes = tile.IMAGES * math.ceil(tile.D / tile.CHANNEL_CHUNK) * tile.CHANNEL_CHUNK
    transforms = 2 * planes * (tile.HP * tile.WP * 2 * tile.FP + 2 * tile.HP * 2 * tile.HP * tile.FP)
    frequencies = tile.IMAGES * tile.HP * tile.FP
    rows = math.ceil(tile.H * tile.F / tile.FREQUENCY_CHUNK) * tile.FREQUENCY_CHUNK if tile.STAGED else frequencies
    return 2 * (transforms + rows * 2 * 2 * tile.DP * 2 * tile.DHP)


class Bounds(NamedTuple):
    """Microseconds that a call cannot be faster than."""

    bytes: float
    matrix: float
    issue: float
    shared: float
    launches: int = 1

    @property
    def predicted(self) -> float:
        return 2 * max(self[:4]) + 3 * self.launches


def triton_bounds(spec: MixerSpec) -> Bounds:
    compiled, row, tile = compile_row("forward", spec, 90)
    tiles = BATCH * BLOCKS / tile.IMAGES
    issue = instructions(compiled.asm["cubin"], tile) * row.warps * tiles / MULTIPROCESSORS / ISSUED_PER_US
    flops = products(tile) * tiles * tile.PASSES
    return Bounds(moved(spec) / BYTES_PER_US, flops / FLOP_PER_US, issue, 0.0)


def one_launch_bounds(spec: MixerSpec, found: one_launch.Count) -> Bounds:
    """The grid is persistent: the weights are loaded once a CTA, and a CTA takes several groups of images."""
    launch = found.launch
    groups = BATCH * BLOCKS / launch["images"]  # iterations of all CTAs
    cost = found.once.times(groups).plus(found.before.times(launch["ctas"])).times(found.warps / MULTIPROCESSORS)
    flops = sum(count * _matrix_flops(kind) for kind, count in cost.items() if "MMA" in kind) * MULTIPROCESSORS
    shared = cost["#shared bytes"] / (128 * 1755)
    return Bounds(moved(spec) / BYTES_PER_US, flops / FLOP_PER_US, cost.instructions / ISSUED_PER_US, shared)


def _matrix_flops(kind: str) -> float:
    """Of a matrix instruction of a warp; in TF32 as many as in half precision take the time."""
    shape = re.search(r"HMMA\.16(8?)(8|16)\.", kind)
    if shape is None:
        raise ValueError(f"predict: expected HMMA.1688 or HMMA.16816, got {kind}")
    return 2 * 16 * 8 * int(shape[2]) * (2 if "TF32" in kind else 1)


def planned_bounds(spec: MixerSpec) -> Bounds:
    """cuFFT, the map, cuFFT, and a kernel that adds x; for 16-bit types one before that converts."""
    item = spec.dtype.itemsize
    spectrum = 8 * spec.frequencies / spec.width
    converted = item + 4 if item == 2 else 0
    each = converted + (4 + spectrum) + 2 * spectrum + (spectrum + 4) + (4 + 2 * item)
    elements = spec.batch * spec.channels * spec.height * spec.width
    return Bounds(each * elements / BYTES_PER_US, 0.0, 0.0, 0.0, launches=5 if item == 2 else 4)


def moved(spec: MixerSpec) -> int:
    """Bytes of x and y."""
    return 2 * spec.batch * spec.channels * spec.height * spec.width * spec.dtype.itemsize


def main() -> None:
    print(
        f"{'map':7}{'C':>4}  {'type':9}{'way':11}{'bytes':>7}{'matrix':>8}{'issue':>7}{'shared':>8}{'predicted':>11}"
        f"{'of a copy':>11}"
    )
    shapes = sorted(SHIPPED, key=lambda shape: (-shape[1], shape[0]))
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        wanted = [one_launch.Shape(height, channels // BLOCKS, name) for channels, height in shapes]
        counted = {count.shape: count for count in one_launch.counts(wanted, 90)}
        for (channels, height), shape in zip(shapes, wanted, strict=True):
            spec = MixerSpec(
                BATCH, channels, height, height, BLOCKS, channels // BLOCKS, dtype, torch.device("cuda"), "silu"
            )
            ways = {"triton": triton_bounds(spec), "planned": planned_bounds(spec)}
            if shape in counted:
                ways["one launch"] = one_launch_bounds(spec, counted[shape])
            for way, bounds in ways.items():
                copy = moved(spec) / BYTES_PER_US
                print(
                    f"{f'{height}x{height}':7}{channels:4}  {name:9}{way:11}"
                    f"{bounds.bytes:7.1f}{bounds.matrix:8.1f}{bounds.issue:7.1f}{bounds.shared:8.1f}"
                    f"{bounds.predicted:11.0f}{copy / bounds.predicted:11.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
