"""`export`: a network as a file for another runtime, checked and timed there."""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from affnet_kernels import AFFMixer
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.export import aoti, coreml, executorch, onnx, openvino
from affnet_kernels.export.exportable import example_images, image_shape
from affnet_kernels.export.program import Run
from affnet_kernels.export.quantization import quantize_onnx
from affnet_kernels.models import MODELS, AFFNet, create_model
from affnet_kernels.models.checkpoint import from_checkpoint
from affnet_kernels.models.images import load_image
from affnet_kernels.models.layers import NORMS

FORMATS = {
    "onnx": (onnx.export_onnx, onnx.load_onnx),
    "executorch": (executorch.export_executorch, executorch.load_executorch),
    "coreml": (coreml.export_coreml, coreml.load_coreml),
    "openvino": (openvino.export_openvino, openvino.load_openvino),
    "aoti": (aoti.export_aoti, aoti.load_aoti),
}
BOUND = 1e-4  # of the error, relative to the largest output
ROUNDS = 20


class Latency(NamedTuple):
    """Seconds for one image on one thread, medians of interleaved calls."""

    official: float  # eager PyTorch, the mixers written with torch.fft
    fused: float  # eager PyTorch with this project's operator
    exported: float
    speedup: float  # official / exported, the median of the ratios of neighbouring calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, its weights, the format and the size."""
    parser.add_argument("--model", choices=MODELS, help="the network; a checkpoint tells which it is")
    parser.add_argument("--checkpoint", metavar="F", help="its weights; without them they are random, for measuring")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="silu", help="which a checkpoint does not tell")
    parser.add_argument("--norm", choices=NORMS, help="if other than the checkpoint's keys suggest")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--size", default="256", metavar="S or HxW", help="of the images, 256 if not given")
    parser.add_argument("--quantize", choices=["int8"], help="the layers from the first mixer on; for --format onnx")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="some dozens of images, for --quantize")
    parser.add_argument("out", metavar="OUT", help="the file: .onnx, .pte, .mlpackage, .xml or .pt2")


def run(options: argparse.Namespace) -> int:
    """Export a network for another runtime, run it there, and print its error and latency; 1 if the error is large."""
    size = _size(options.size)
    images = _calibration_images(options, size)
    model = _network(options)
    export, load = FORMATS[options.format]
    if images:
        with tempfile.TemporaryDirectory() as folder:
            float32 = export(model, Path(folder, "float32.onnx"), size=(model.in_chans, *size))
            exported = quantize_onnx(float32.path, options.out, images)
    else:
        exported = export(model, options.out, size=(model.in_chans, *size))
    print(f"{exported.path}: {file_size(exported.path) / 1e6:.1f} MB, images of {size[0]} x {size[1]}")
    print(f"operators: {', '.join(exported.operators)}")
    if exported.error is None:
        print(f"error: not known, as {options.format} cannot run here")
        return 0
    with torch.no_grad():
        largest = model(example_images(model, (1, *image_shape("export", (model.in_chans, *size))))).abs().max().item()
    print(f"error: {exported.error:.1e} at most, of outputs up to {largest:.2g}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if exported_run := load(exported.path, one_thread=True):
            name = f"{options.format} {options.quantize}" if images else options.format
            _print_latency(name, _latency(model, exported_run, size))
    finally:
        torch.set_num_threads(threads)
    return int(not images and not exported.error <= BOUND * max(1, largest))  # NaN is wrong too


def _size(text: str) -> tuple[int, int]:  # H, W
    numbers = text.split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"export: expected size as S or HxW, such as 256 or 256x320, got {text}")
    return int(numbers[0]), int(numbers[-1])


def _calibration_images(
    options: argparse.Namespace,
    size: tuple[int, int],  # H, W
) -> list[Tensor]:  # each [1, 3, H, W]; none without --quantize
    folder = options.calibration
    if (options.quantize is None) != (folder is None):
        raise ValueError("export: expected --quantize and --calibration together, got one of them")
    if folder is None:
        return []
    if options.format != "onnx" or size[0] != size[1]:
        raise ValueError(
            f"export: expected --quantize with --format onnx and square images, got {options.format} and "
            f"{size[0]} x {size[1]}; quantize_onnx takes other images"
        )
    if not folder.is_dir():
        raise NotADirectoryError(f"export: expected --calibration to be a folder, got {folder}")
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"export: expected images in {folder} for --calibration, got none")
    return [load_image(file, size[0])[None] for file in files]


def _network(options: argparse.Namespace) -> AFFNet:
    told = {"activation": options.activation} | ({} if options.norm is None else {"norm": options.norm})
    if options.checkpoint is None:
        if options.model is None:
            raise ValueError("export: expected a network, got none; give --checkpoint or --model")
        print("weights: random, for measuring only")
        torch.manual_seed(0)
        return create_model(options.model, **told).eval()
    model = from_checkpoint(options.checkpoint, **told)
    if options.model is not None and model.feature_info != create_model(options.model).feature_info:
        raise ValueError(
            f"export: expected a checkpoint of {options.model}, got {options.checkpoint}, which is another network's"
        )
    return model


def file_size(path: Path) -> int:  # bytes
    """The size of an exported file, or of all files in a folder; OpenVINO's weights are beside its graph."""
    files = [path, *path.rglob("*")] + ([path.with_suffix(".bin")] if path.suffix == ".xml" else [])
    return sum(file.stat().st_size for file in files if file.is_file())


def _latency(
    model: AFFNet,
    exported: Run,
    size: tuple[int, int],  # H, W
) -> Latency:
    official: nn.Module = copy.deepcopy(model)
    for module in official.modules():
        if isinstance(module, AFFMixer):
            module.backend = "reference"
    images = example_images(model, (1, model.in_chans, *size))
    rows = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 2):
            seconds = []
            for call in (official, model, exported):
                start = time.perf_counter()
                call(images)
                seconds.append(time.perf_counter() - start)
            rows.append(seconds)
    rows = rows[2:]
    official_time, fused_time, exported_time = (median(column) for column in zip(*rows, strict=True))
    return Latency(official_time, fused_time, exported_time, median(row[0] / row[2] for row in rows))


def _print_latency(name: str, latency: Latency) -> None:
    print(f"one image on one thread, medians of {ROUNDS} calls in turn:")
    print(f"  official network, eager  {1e3 * latency.official:8.1f} ms")
    print(f"  fused mixers, eager      {1e3 * latency.fused:8.1f} ms")
    print(f"  {name:<24} {1e3 * latency.exported:8.1f} ms, {latency.speedup:.2f}x the official network's speed")
