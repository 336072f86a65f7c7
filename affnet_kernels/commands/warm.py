"""`warm`: Triton's cache filled ahead of time."""

from __future__ import annotations

import argparse
import re
import sys
import time

import torch

from affnet_kernels import MixerSpec
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import triton


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The maps, and what they are mixed with."""
    parser.add_argument("maps", nargs="+", metavar="CHANNELS@HxW")
    parser.add_argument("--blocks", type=int, default=8, help="channel blocks, 8 in AFFNet")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="silu")


def run(options: argparse.Namespace) -> int:
    """Compile the Triton kernels of the maps given, such as 64@32x32, before a training run needs them."""
    specs = []
    dtype = getattr(torch, options.dtype)
    for text in options.maps:
        found = re.fullmatch(r"(\d+)@(\d+)x(\d+)", text)
        if found is None or int(found[1]) % options.blocks:
            raise ValueError(
                f"warm: expected maps as CHANNELS@HxW, channels a multiple of {options.blocks}, got {text}"
            )
        channels, height, width = (int(number) for number in found.groups())
        device, size = torch.device("cuda", 0), channels // options.blocks
        spec = MixerSpec(1, channels, height, width, options.blocks, size, dtype, device, options.activation)
        if reasons := triton.unsupported(spec):
            print(f"warm: {text} does not run on triton: {'; '.join(reasons)}", file=sys.stderr)
            return 1
        specs.append(spec)
    start = time.perf_counter()
    count = triton.warm(specs, lambda done, total: print(f"\rcompiled {done} of {total} kernels", end="", flush=True))
    print(f"\n{count} kernels in {time.perf_counter() - start:.1f} s")
    return 0
