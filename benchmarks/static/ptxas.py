"""The compile check's rows for the CUDA C++ kernels: every instance, compiled by nvcc and ptxas."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.static.compile_check import Row

CSRC = Path(__file__).parents[2] / "csrc"
ARCHS = tuple(int(target.replace(".", "")) for target in (CSRC / "cuda" / "targets.txt").read_text().split(";"))
# Bytes that a thread may spill. In float64, division and exp are calls, around which ptxas keeps registers in memory;
# in float32 it gives up a few registers so that one more CTA of the largest size fits on a multiprocessor.
#
# Below compute capability 10, ptxas prefetches the tensor-core kernels' weights into all available registers and spills
# values that a tile needs once or twice: at most 40 loads in 3800 instructions of the forward map. The VJP takes 16
# registers per quad and some for its sums: from 5 quads on they do not all fit in 255, and with 3 and 4 quads some are
# given up for a third CTA on a multiprocessor.
SPILL_ALLOWED = {
    ("map_vjp_kernel", "double"): 256,
    ("map_vjp_kernel", "float"): 16,
    ("map_kernel", "double"): 24,
    ("map_kernel", "float"): 8,
    **{("map_mma_kernel", quads): spill for quads, spill in zip("34568", (8, 20, 16, 96, 16), strict=True)},
    ("map_mma_kernel", "10"): 160,
    **{("map_vjp_mma_kernel", quads): spill for quads, spill in zip("34568", (24, 80, 116, 144, 256), strict=True)},
}

# The functions that name every instance are those that the launcher calls.
SOURCE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "cuda/planes.cuh"
#include "cuda/spectral_map_vjp.cuh"
#include "cuda/spectral_map_vjp_mma.cuh"
namespace affnet {
template MmaKernel mma_kernel(int, bool, MmaQuads);
template FmaKernel<float> fma_kernel<float>(const LaunchPlan&, bool);
template __global__ void reduce_kernel(const float*, int64_t, int, int, int, float*, float*, float*, float*);
#ifndef AFFNET_SHORT
template FmaKernel<double> fma_kernel<double>(const LaunchPlan&, bool);
template __global__ void reduce_kernel(const double*, int64_t, int, int, int, double*, double*, double*, double*);
#endif
#define AFFNET_PLANES(S, T)                                               \\
  template __global__ void load_kernel(const S*, T*, int64_t, int);       \\
  template __global__ void store_kernel(const T*, const S*, S*, int64_t, int);
AFFNET_PLANES(float, float)
AFFNET_PLANES(double, double)
AFFNET_PLANES(__half, float)
AFFNET_PLANES(__nv_bfloat16, float)
}
"""
SHORT = ("-DAFFNET_SHORT", "-DAFFNET_FMA_TILES=64", "-DAFFNET_MMA_QUADS=4")


def cuda_rows(short: bool) -> Iterator[Row]:
    """The kernels of csrc/cuda: every instance that the launcher may choose, or a few of them."""
    if shutil.which("nvcc") is None:
        sys.exit("compile_check: expected nvcc on PATH, got none; install the CUDA toolkit")
    for arch in (90,) if short else ARCHS:
        yield from _rows(arch, SHORT if short else ())


def _rows(arch: int, defines: tuple[str, ...]) -> Iterator[Row]:
    import triton

    from benchmarks.static.compile_check import Row

    with tempfile.TemporaryDirectory() as folder:
        path, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        path.write_text(SOURCE)
        start = time.perf_counter()
        done = subprocess.run(
            [
                "nvcc",
                "-std=c++20",
                "-O3",
                f"-arch=sm_{arch}",
                "-Xptxas",
                "-v",
                f"-I{CSRC}",
                *defines,
                "-cubin",
                path,
                "-o",
                cubin,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            sys.exit(f"compile_check: expected csrc/cuda to compile for sm_{arch}, got\n{done.stderr}")
        code = subprocess.run(
            [triton.knobs.nvidia.nvdisasm.path, "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
    _, *parts = re.split(r"^\.text\.(\w+):$", code, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers([^\n]*)",
        done.stderr,
        re.DOTALL,
    )
    for mangled, spill, registers, rest in found:
        name, case = _described(mangled)
        operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)", sections[mangled])
        static = re.search(r"(\d+) bytes smem", rest)
        counts = Counter(operation for operation in operations if operation.endswith("MMA"))
        yield Row(
            kernel=f"cuda {name.removesuffix('_kernel')}",
            case=case,
            arch=arch,
            registers=int(registers),
            spill=int(spill),
            spill_allowed=SPILL_ALLOWED.get((name, case.split()[0]), 0),
            shared=-(-int(static[1]) // 1024) if static else 0,  # static; launch_plan.h sizes the rest
            shared_allowed=0,
            mma=" + ".join(f"{count} {operation}" for operation, count in sorted(counts.items())),
            instructions=len(operations),
            seconds=seconds / len(found),
        )


def _described(mangled: str) -> tuple[str, str]:
    """The name of a kernel, and its template arguments in words."""
    name = re.search(r"\d+([a-z_]+_kernel)I(.+?)EvN?", mangled)
    if name is None:
        sys.exit(f"compile_check: expected the name of a kernel, got {mangled}")
    words = {"f": "float", "d": "double", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
    arguments = re.findall(r"Li\d+|6__half|13__nv_bfloat16|[fd]", name[2] + "E")
    number = "{} quads" if "mma" in name[1] else "tile {}"
    return name[1], " ".join(words.get(a, number.format(a[2:]) if a.startswith("Li") else a) for a in arguments)
