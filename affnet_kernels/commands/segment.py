"""`segment`: what is where in an image."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.models.images import MIN_SIDE, as_tensor, read_image
from affnet_kernels.models.layers import NORMS
from affnet_kernels.models.maps import draw_overlay, save_map
from affnet_kernels.models.segmenters import segmenter_from_checkpoint

MAX_RATIO = 8  # of the longer side of the network's input to the shorter one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The image, the network, and the names of its classes."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, metavar="FILE")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="a name a line, from class 0; by default the file's"
    )
    parser.add_argument("--size", type=int, help="shorter side of what the network sees; by default that of training")
    parser.add_argument(
        "--output-stride", type=int, choices=(8, 16, 32), help="of the backbone; by default that of training, or 16"
    )
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, help="of the backbone; by default that of training, or silu"
    )
    parser.add_argument("--norm", choices=NORMS, help="needed for layer_norm, which has the keys of layer_norm_2d")
    parser.add_argument(
        "--head-activation", choices=ACTIVATIONS, help="of the head; by default that of training, or relu"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.png",
        help="the class of each pixel, by default IMAGE's name with .map.png; FILE.overlay.png beside it is to look at",
    )


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Write the map of an image's classes and draw it over the image, by a DeepLabv3 of a checkpoint."""
    out = options.out or Path(Path(options.image).stem + ".map.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"segment: expected --out to end in .png, got {out}")
    if not out.parent.is_dir():
        raise ValueError(f"segment: expected --out in a folder that exists, got {out}")
    beside = out.with_name(f"{out.stem}.overlay.png")
    image = as_tensor(read_image(options.image, "segment"))
    for file in (out, beside):
        if file.exists() and file.samefile(options.image):
            raise ValueError(f"segment: expected --out to be another file than the image, got {out}")
    given = {name: getattr(options, name) for name in ("activation", "norm", "output_stride", "head_activation")}
    found = segmenter_from_checkpoint(
        options.checkpoint, **{name: value for name, value in given.items() if value is not None}
    )
    size = options.size or found.size
    if size < MIN_SIDE:
        raise ValueError(f"segment: expected --size >= {MIN_SIDE}, got {size}")
    classes = _labels(options.labels, found.classes)
    step = found.network.encoder.feature_info[-1]["reduction"]
    classes_found = class_map(found.network, image, size, step)
    shares = class_shares(classes_found)
    save_map(classes_found, classes, out)
    draw_overlay(image, classes_found, classes, shares, beside)
    for index, share in shares.items():
        print(f"{100 * share:8.2f} %  {classes[index]}")
    print(f"{out}\n{beside}")
    return 0


def class_map(
    network: nn.Module,
    image: Tensor,  # [3, H, W], in [0, 1]
    size: int,
    step: int,
) -> Tensor:  # [H, W], int64
    """The class of each pixel of an image that a network sees with its shorter side resized to `size`.

    The longer side is made `size` plus a multiple of `step`, the network's output stride: its last layer stretches a
    map so that the corners' pixels meet, which shifts what it has found by up to a step, and at these sizes alone it
    does so as it did in training. The ratio of the sides may change a little.
    """
    height, width = image.shape[1:]
    ratios = (min(MAX_RATIO, side / min(height, width)) for side in (height, width))  # a panorama is squeezed
    seen = tuple(size + step * round((ratio - 1) * size / step) for ratio in ratios)
    resized = F.interpolate(image[None], seen, mode="bilinear", antialias=True, align_corners=False)
    best, found = torch.full((height, width), -torch.inf), torch.zeros(height, width, dtype=torch.int64)
    # Class by class: a photograph's pixels times 150 classes would not fit into memory.
    for index, plane in enumerate(network(resized)[0]):
        logits = F.interpolate(plane[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        found = torch.where(logits > best, index, found)
        best = torch.maximum(logits, best)
    return found


def class_shares(
    found: Tensor,  # [H, W], int64
) -> dict[int, float]:
    """The part of the pixels that each class has which occurs, the largest first."""
    numbers, counts = found.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return {int(numbers[place]): float(counts[place]) / found.numel() for place in order}


def _labels(
    file: Path | None,
    classes: list[str],
) -> list[str]:
    """The names in the file, else the checkpoint's."""
    if file is None:
        return classes
    if not file.is_file():
        raise FileNotFoundError(f"segment: expected --labels to be a text file, got {file}")
    try:
        labels = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"segment: expected --labels to be a text file, got {file}, which is not UTF-8") from error
    if len(labels) != len(classes):
        raise ValueError(
            f"segment: expected a name a line for {len(classes)} classes, got {len(labels)} lines in {file}"
        )
    return labels
