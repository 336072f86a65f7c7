"""Predicts the times of the Triton forward kernels from their compiled code, to judge the first measurements by.

    python -m benchmarks.static.predict

It prints three lower bounds for an H200 at batch 64: the bytes of x and y at 4.3 TB/s; the matrix products, padding
included, at 62 % of 989 TFLOP/s in half precision, with three products for each one in float32; and the instructions
of the compiled code, each chunk's code counted as often as it runs, at four per cycle and 1.755 GHz on 132
multiprocessors. The prediction is an estimate on top: twice the highest bound, for latencies and barriers, plus 3 us
for a launch.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile

import torch

from affnet_kernels.backends.triton.tile import Tile
from affnet_kernels.spec import MixerSpec
from benchmarks.cases import SHIPPED
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


def main() -> None:
    print(f"{'map':9}{'C':>4}  {'type':9}{'MB':>5}{'GFLOP':>7}{'bytes':>7}{'matrix':>8}{'issue':>7}{'predicted':>12}")
    for channels, height in sorted(SHIPPED, key=lambda shape: (-shape[1], shape[0])):
        for dtype in (torch.bfloat16, torch.float32):
            size = channels // BLOCKS
            spec = MixerSpec(BATCH, channels, height, height, BLOCKS, size, dtype, torch.device("cuda"), "relu")
            compiled, row, tile = compile_row("forward", spec, 90)
            tiles = BATCH * BLOCKS / tile.IMAGES
            moved = 2 * BATCH * channels * height**2 * dtype.itemsize
            flops = products(tile) * tiles * tile.PASSES
            issue = instructions(compiled.asm["cubin"], tile) * row.warps * tiles / MULTIPROCESSORS / ISSUED_PER_US
            ceilings = moved / BYTES_PER_US, flops / FLOP_PER_US, issue
            print(
                f"{f'{height}x{height}':9}{channels:4}  {str(dtype).removeprefix('torch.'):9}{moved / 1e6:5.1f}"
                f"{flops / tile.PASSES / 1e9:7.2f}{ceilings[0]:7.1f}{ceilings[1]:8.1f}{issue:7.1f}"
                f"{2 * max(ceilings) + 3:12.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
