"""The count of executed instructions (benchmarks/static/census.py) against counts by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from affnet_kernels import MixerSpec
from benchmarks.static import census, one_launch, predict
from benchmarks.static.costs import Cost
from benchmarks.static.graph import Graph
from benchmarks.static.sass import functions

# What the disassembler prints for a loop in a loop, with a diamond, a reconvergence barrier and a branch that is taken
# only if lanes have parted. Counted by hand: prologue 2; an outer iteration is 2, the inner loop, then 4 of the longer
# side of the diamond (with its jump), or 2 of the shorter, then 2; an inner iteration is 3; the end is 1.
LISTING = """
.text.kernel:
\t//## File "{file}", line 1
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   IMAD.MOV.U32 R1, RZ, RZ, RZ ;
.L_x_1:
\t//## File "{file}", line 3
        /*0020*/                   LDS.128 R4, [R0] ;
        /*0030*/                   BSSY B0, `(.L_x_5) ;
.L_x_2:
\t//## File "{file}", line 4
        /*0040*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0050*/                   ISETP.NE.AND P0, PT, R1, R2, PT ;
        /*0060*/               @P0 BRA `(.L_x_2) ;
\t//## File "{file}", line 6
        /*0070*/              @!P1 BRA `(.L_x_3) ;
\t//## File "{file}", line 7
        /*0080*/                   FADD R8, R8, R9 ;
        /*0090*/                   BRA.DIV UR4, `(.L_x_9) ;
        /*00a0*/                   BSYNC B0 ;
.L_x_3:
\t//## File "{file}", line 8
        /*00b0*/                   BSYNC B0 ;
.L_x_5:
\t//## File "{file}", line 2 inlined at "{file}", line 9
\t//## File "{file}", line 9
        /*00c0*/                   UIADD3 UR5, UR5, 0x1, URZ ;
        /*00d0*/                   BRA.U UP0, `(.L_x_1) ;
        /*00e0*/                   EXIT ;
.L_x_9:
        /*00f0*/                   WARPSYNC.COLLECTIVE R1, `(.L_x_5) ;
        /*0100*/                   BRA `(.L_x_5) ;
.L_x_10:
        /*0110*/                   BRA `(.L_x_10);
        /*0120*/                   NOP;
"""
SOURCE = """first
  for (int image = 0; image < images; ++image) {  // trips: images
    load
    for (int tile = 0; tile < tiles; ++tile) {  // trips: tiles
    }
    if (lane == 0) {
      add
    }
"""


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    source = tmp_path / "kernel.cuh"
    source.write_text(SOURCE)
    found = functions(LISTING.format(file=source))
    assert list(found) == ["kernel"]
    return Graph(found["kernel"])


def test_loops_are_weighted_by_the_trips_that_they_name(graph: Graph) -> None:
    assert graph.names() == {"images", "tiles"}
    assert graph.unnamed() == []
    trips = {"images": 10, "tiles": 7}
    longest = 2 + 10 * (2 + 7 * 3 + 4 + 2) + 1
    assert graph.cost(trips).instructions == longest
    assert graph.cost(trips, longest=False).instructions == longest + 10 * 1  # the other side's BSYNC
    assert graph.cost(trips)["tensor"] == 70
    assert graph.cost(trips)["#HMMA.16816.F32"] == 70
    assert graph.cost(trips)["#shared bytes"] == 10 * 512
    assert graph.once("images", trips).instructions == 2 + 7 * 3 + 4 + 2
    assert graph.once("tiles", trips).instructions == 3
    with pytest.raises(ValueError, match=r"expected a loop with trips named rows, got \['images', 'tiles'\]"):
        graph.once("rows", trips)


def test_a_loop_without_a_name_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cuh"
    source.write_text(SOURCE.replace("  // trips: tiles", ""))
    graph = Graph(functions(LISTING.format(file=source))["kernel"])
    assert graph.unnamed() == [f"{source}:4"]
    assert graph.cost({"images": 10}).instructions == 2 + 10 * (2 + 3 + 4 + 2) + 1


def test_rare_code_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cuh"
    source.write_text(SOURCE.replace("if (lane == 0) {", "if (overflow) {  // rare"))
    graph = Graph(functions(LISTING.format(file=source))["kernel"])
    assert graph.once("images", {"tiles": 7}).instructions == 2 + 7 * 3 + 1 + 1 + 2


KERNEL = """
#include "activations.h"

template <affnet::Activation kActivation>
__device__ __forceinline__ float pass(float v) {
  if constexpr (kActivation == affnet::Activation::kRelu) {
#pragma unroll
    for (int i = 0; i < 15; ++i) asm volatile("fma.rn.f32 %0, %0, %0, 0f3F800000;" : "+f"(v));
  } else if constexpr (kActivation == affnet::Activation::kSilu) {
#pragma unroll
    for (int i = 0; i < 20; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(v));
  }
  return v;
}

// Two multiplications in each of `images`, three in each of `tiles`, and those of the activation once an image.
__global__ void counted(float* y, int images, int tiles, affnet::Activation activation) {
  float v = y[threadIdx.x];
#pragma unroll 1
  for (int image = 0; image < images; ++image) {  // trips: images
    asm volatile("fma.rn.f32 %0, %0, %0, %0;\\n fma.rn.f32 %0, %0, %0, %0;" : "+f"(v));
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {  // trips: tiles
      asm volatile("fma.rn.f32 %0, %0, %0, %0;\\n fma.rn.f32 %0, %0, %0, %0;" : "+f"(v));
      asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(v));
    }
    v = affnet::with_activation(activation, [&](auto a) { return pass<decltype(a)::value>(v); });
    if (threadIdx.x == 3) y[image] = v;
    __syncthreads();
  }
  y[threadIdx.x] = v;
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_a_compiled_kernel(tmp_path: Path, arch: int) -> None:
    pytest.importorskip("triton")  # which brings the disassembler
    source = tmp_path / "counted.cu"
    source.write_text(KERNEL)
    compiled = census.compile_cuda(source, arch)
    (name,) = compiled.usage
    assert compiled.usage[name].spill == 0
    blocks = functions(compiled.code)[name]
    for activation, count in (("Relu", 15), ("Silu", 20)):
        graph = Graph(blocks, activation)
        assert graph.unnamed() == []
        cost = graph.cost({"images": 10, "tiles": 7})
        assert cost["float"] == 10 * (2 + 7 * 3 + count)
        assert (
            cost.instructions
            == graph.cost({"images": 0, "tiles": 7}).instructions + 10 * graph.once("images", {"tiles": 7}).instructions
        )


SILU = Cost({"tensor": 400, "float": 3000, "#HMMA.16816.F32": 400, "#shared bytes": 102400})
COUNTED = one_launch.Count(
    shape=one_launch.Shape(32, 16, "bfloat16"),
    arch=90,
    launch={"images": 1, "threads": 128, "shared_bytes": 71 * 1024, "ctas": 256, "unit_tiles": 1},
    usage=census.Usage(160, 0, 0),
    once=SILU,
    relu=Cost({"tensor": 400, "float": 2700}),
    unnamed=[],
    before=Cost({"float": 500}),
    code=5000,
)


def test_a_count_is_given_for_an_element() -> None:
    elements = 16 * 32 * 32
    assert COUNTED.instructions == 3400 * 4 * 32 / elements
    assert COUNTED.relu_instructions == 3100 * 4 * 32 / elements
    assert COUNTED.shared_bytes == 102400 * 4 / elements
    assert COUNTED.ctas == 3  # 65536 registers and 228 KiB hold three times 160 * 128 and 72 KiB
    assert one_launch.faults(COUNTED) == []
    (line,) = one_launch.table([COUNTED], {COUNTED.shape: 1.25}).splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")[1:12]] == [
        *("D=16 32x32 bfloat16", "90", "160", "0", "71", "3", "24.2", "29", "26.6", "27.6", "25.0")
    ]


def test_what_is_beyond_its_bounds_is_named() -> None:
    found = replace(COUNTED, relu=Cost({"float": 3713}), once=Cost({"float": 4300}), usage=census.Usage(255, 8, 0))
    assert one_launch.faults(replace(found, unnamed=["a.cuh:3"])) == [
        "29.0 instructions an element, 29 are allowed",
        "SiLU takes 1.16 times ReLU's instructions, 1.15 is allowed",
        "spills 8 bytes, none is allowed for a released network's map",
        "a loop does not say how often it runs: a.cuh:3",
    ]
    assert one_launch.faults(replace(COUNTED, shape=one_launch.Shape(28, 16, "bfloat16"), relu=SILU)) == []


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        (
            "_ZN6affnet21single_forward_kernelILi32ELi32ELi4EEEvNS_15SingleArgumentsE",
            "single_forward_kernel<32, 32, 4>",
        ),
        (
            "_ZN6affnet19half_forward_kernelILi2ELi10ELb0EEEvNS_13HalfArgumentsE",
            "half_forward_kernel<2, 10, 0>",
        ),
    ],
)
def test_the_name_of_a_kernel(mangled: str, name: str) -> None:
    assert one_launch.template_name(mangled) == name
    with pytest.raises(ValueError, match="expected the name of a kernel, got _ZN6affnet13reduce_kernelIfEEvPf"):
        one_launch.template_name("_ZN6affnet13reduce_kernelIfEEvPf")


def test_one_launch_is_predicted_by_the_model_of_triton() -> None:
    spec = MixerSpec(64, 128, 32, 32, 8, 16, torch.bfloat16, torch.device("cuda"), "silu")
    bounds = predict.one_launch_bounds(spec, COUNTED)
    tiles = 64 * 8
    assert bounds.bytes == pytest.approx(2 * 2 * 64 * 128 * 1024 / 4.3e6)
    assert bounds.issue == pytest.approx(4 * (tiles * 3400 + 256 * 500) / 132 / (4 * 1755))
    assert bounds.matrix == pytest.approx(4 * tiles * 400 * 2 * 16 * 8 * 16 / (0.62 * 989e6))
    assert bounds.shared == pytest.approx(4 * tiles * 102400 / 132 / (128 * 1755))
    assert bounds.predicted == pytest.approx(2 * max(bounds[:4]) + 3)
    float32 = spec._replace(dtype=torch.float32)
    assert predict.planned_bounds(float32).bytes == pytest.approx((4 + 4 * 4.25 + 4 + 12) * 64 * 128 * 1024 / 4.3e6)
    assert predict.planned_bounds(spec).bytes == pytest.approx((6 + 4 + 4 * 4.25 + 4 + 8) * 64 * 128 * 1024 / 4.3e6)
    assert predict.planned_bounds(spec).launches == 5
    with pytest.raises(ValueError, match=r"expected HMMA\.1688 or HMMA\.16816, got #IMMA"):
        predict.one_launch_bounds(spec, replace(COUNTED, once=Cost({"#IMMA.16816": 1})))
