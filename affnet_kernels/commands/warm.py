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
from affnet_kernels.models import MODELS, create_model
from affnet_kernels.models.token_mixers import NUM_BLOCKS

Map = tuple[int, int, int]  # C, H, W


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The maps, one by one or as those of a network, and what they are mixed with."""
    parser.add_argument("maps", nargs="*", metavar="CHANNELS@HxW")
    parser.add_argument("--model", metavar="NAME", help=f"the maps of a network: {', '.join(MODELS)}")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="heights and widths of its images")
    parser.add_argument("--blocks", type=int, default=NUM_BLOCKS, help=f"channel blocks, {NUM_BLOCKS} in AFFNet")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="silu")


def run(options: argparse.Namespace) -> int:
    """Compile the Triton kernels of the maps given, such as 64@32x32, or of a network, before training needs them."""
    maps = [_parse(text, options.blocks) for text in options.maps]
    if options.model is not None:
        maps += [found for size in options.size for found in maps_of(options.model, size)]
    if not maps:
        raise ValueError("warm: expected maps as CHANNELS@HxW, or --model, got neither")
    specs = []
    dtype = getattr(torch, options.dtype)
    for channels, height, width in dict.fromkeys(maps):
        device, size = torch.device("cuda", 0), channels // options.blocks
        spec = MixerSpec(1, channels, height, width, options.blocks, size, dtype, device, options.activation)
        if reasons := triton.unsupported(spec):
            name = f"{channels}@{height}x{width}"
            print(f"warm: {name} does not run on triton: {'; '.join(reasons)}", file=sys.stderr)
        else:
            specs.append(spec)
    if not specs:
        return 1
    start = time.perf_counter()
    count = triton.warm(specs, lambda done, total: print(f"\rcompiled {done} of {total} kernels", end="", flush=True))
    print(f"\n{count} kernels in {time.perf_counter() - start:.1f} s")
    return 0


def maps_of(
    name: str,
    size: int,  # of the images, height and width
) -> list[Map]:
    """The maps that the mixers of a network see."""
    if size < 1:
        raise ValueError(f"warm: expected --size >= 1, got {size}")
    with torch.device("meta"):
        model = create_model(name)
    return [
        (stage["num_chs"], *(2 * (-(-size // stage["reduction"]),)))
        for stage in model.feature_info
        if any("filter" in key for key, _ in model.get_submodule(stage["module"]).named_parameters())
    ]


def _parse(text: str, blocks: int) -> Map:
    found = re.fullmatch(r"(\d+)@(\d+)x(\d+)", text)
    if found is None or int(found[1]) % blocks:
        raise ValueError(f"warm: expected maps as CHANNELS@HxW, channels a multiple of {blocks}, got {text}")
    channels, height, width = (int(number) for number in found.groups())
    return channels, height, width
