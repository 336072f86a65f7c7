"""Counts the instructions that a kernel executes, from its machine code and the trip counts of its loops.

    python -m benchmarks.static.census FILE.cu --trips tiles=33 --per images --elements 16384 --warps 4 [-- nvcc flags]

The loops of the source name their trips, see graph.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.static.graph import Graph
from benchmarks.static.ptxas import CSRC
from benchmarks.static.sass import disassemble, functions


class Usage(NamedTuple):
    """What ptxas said of a kernel."""

    registers: int
    spill: int  # bytes of stores per thread
    static_shared: int  # bytes; a launch adds its own


class Compiled(NamedTuple):
    code: str  # disassembled, with lines
    usage: dict[str, Usage]  # by mangled name


def compile_cuda(
    source: Path,
    arch: int,
    *flags: str,
) -> Compiled:
    """A source that nvcc compiles for one architecture, with line information, which changes no instruction."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{arch}", "-lineinfo", "-Xptxas", "-v", f"-I{CSRC}"]
        done = subprocess.run(
            [*command, *flags, "-cubin", source, "-o", cubin], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"census: expected {source} to compile for sm_{arch}, got\n{done.stderr}")
        code = disassemble(cubin.read_bytes(), nvdisasm())
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers([^\n]*)",
        done.stderr,
        re.DOTALL,
    )
    usage = {}
    for name, spill, registers, rest in found:
        static = re.search(r"(\d+) bytes smem", rest)
        usage[name] = Usage(int(registers), int(spill), int(static[1]) if static else 0)
    return Compiled(code, usage)


def nvdisasm() -> str:
    """The disassembler that Triton brings; the toolkit's may be missing or older than its compiler."""
    import triton

    return triton.knobs.nvidia.nvdisasm.path


def report(
    graph: Graph,
    trips: Mapping[str, float],
    per: str,  # the loop of which one iteration is counted; empty: the whole kernel
    elements: float,  # that the CTA's warps take together in it
    warps: int,
) -> str:
    """The count as lines of text."""
    longest, every = (graph.once(per, trips, way) if per else graph.cost(trips, way) for way in (True, False))
    scale = 32 * warps / elements
    lines = [
        f"{longest.instructions * scale:8.2f} thread instructions per element; "
        f"on all paths {every.instructions * scale:.2f}"
    ]
    lines += [
        f"{count * scale:8.2f} {kind}" for kind, count in sorted(longest.items(), key=lambda i: -i[1]) if kind[0] != "#"
    ]
    lines += [
        f"{longest['#shared bytes'] * warps / elements:8.2f} bytes of shared memory per element, without bank conflicts"
    ]
    lines += [
        f"{count:8.1f} {kind[1:]} per warp" for kind, count in longest.items() if kind.startswith("#") and "MMA" in kind
    ]
    lines += [f"loop without a name, counted once: {line}" for line in graph.unnamed()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="a .cu file")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--kernel", default="", help="a part of the mangled names of the kernels to count")
    parser.add_argument("--trips", nargs="*", default=[], metavar="NAME=N", help="how often each named loop runs")
    parser.add_argument("--per", default="", help="the loop of which one iteration is counted; without it all")
    parser.add_argument("--elements", type=float, default=1.0, help="that a CTA takes in what is counted")
    parser.add_argument("--warps", type=int, default=1, help="of the CTA")
    parser.add_argument("--activation", default="", help="Relu, Silu ...: leave out the code of the others")
    parser.add_argument("flags", nargs="*", help="for nvcc, after --")
    options = parser.parse_args()
    trips = {name: float(count) for name, count in (pair.split("=") for pair in options.trips)}
    compiled = compile_cuda(options.source, options.arch, *options.flags)
    for name, blocks in functions(compiled.code).items():
        if options.kernel in name:
            print(f"== {name}: {compiled.usage[name]}")
            graph = Graph(blocks, options.activation)
            print(report(graph, trips, options.per, options.elements, options.warps), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
