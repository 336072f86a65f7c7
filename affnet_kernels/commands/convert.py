"""`convert`: a checkpoint from one file format to the other, without what training code wrapped it in."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from torch import Tensor

from affnet_kernels.files import replaced_file
from affnet_kernels.models.checkpoint import network_name, read_checkpoint, recognise

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two files, and which weights go from one to the other."""
    parser.add_argument("source", type=Path, help="a checkpoint of an AFFNet, .safetensors or written by torch.save")
    parser.add_argument("target", type=Path, help=f"the file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights where the source has both")
    parser.add_argument(
        "--half",
        action="store_true",
        help="store weights in float16; norms and biases, which are small, stay as they are",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the target")


def run(options: argparse.Namespace) -> int:
    """Convert a checkpoint between .pt and .safetensors, and print what network it is of."""
    source, target = options.source, options.target
    if target.suffix not in SUFFIXES:
        raise ValueError(f"convert: expected a target that ends in {', '.join(SUFFIXES)}, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"convert: expected a target in a folder that exists, got {target}")
    if target.exists() and not options.force:
        raise FileExistsError(f"convert: expected a new file, got {target}, which exists; --force overwrites it")
    state = read_checkpoint(source, ema=options.ema)
    told = recognise(state)
    if told is None:
        raise ValueError(
            f"convert: expected a checkpoint of an AFFNet, got {source} with keys like {next(iter(state))}"
        )
    state = {key: _stored(value, options.half) for key, value in state.items()}
    network = network_name(told)
    _write(state, target, {"format": "pt", "network": network, "norm": told["norm"]})
    same_keys = "" if told["norm"] == "batch_norm_2d" else " (or layer_norm, which has the same keys)"
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    for name, value in (
        ("network", network),
        ("norm", told["norm"] + same_keys),
        ("classes", told["num_classes"] or "none: no classifier"),
        ("in_chans", told["in_chans"]),
        ("tensors", f"{len(state)}, of {', '.join(dtypes)}"),
        ("bytes", f"{source.stat().st_size:,} in {source}, {target.stat().st_size:,} in {target}"),
    ):
        print(f"{name:<9} {value}")
    return 0


def _stored(value: Tensor, half: bool) -> Tensor:
    """A tensor with memory of its own, since a view would be saved with all that it is a view of."""
    dtype = torch.float16 if half and value.is_floating_point() and value.dim() > 1 else value.dtype
    return value.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _write(state: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    content = _safetensors_bytes(state, metadata) if target.suffix == ".safetensors" else _torch_bytes(state)
    with replaced_file("convert", target, target.suffix) as file:
        file.write_bytes(content)


def _torch_bytes(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()  # into a file, torch.save hides the reason of a failure
    torch.save(state, buffer)
    return buffer.getvalue()


def _safetensors_bytes(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("convert: .safetensors needs safetensors; pip install safetensors") from error
    return safetensors.torch.save(state, metadata)
