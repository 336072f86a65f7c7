"""`classify`: what a network takes an image for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from affnet_kernels.commands.networks import add_network_arguments, load_network
from affnet_kernels.models.dense_checkpoints import training_facts
from affnet_kernels.models.images import load_image

IMAGENET_CLASSES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The images, the network, and the names of its classes."""
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, metavar="FILE")
    add_network_arguments(parser)
    parser.set_defaults(activation=None, size=None)  # a checkpoint of this package's training tells them
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="a name a line; by default the run's, or timm's ImageNet names"
    )
    parser.add_argument("--top", type=int, default=5, help="how many classes to print")


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Print the most probable classes of images, by the network of a checkpoint."""
    facts = training_facts(options.checkpoint)
    for name, default in (("activation", "silu"), ("norm", None), ("size", 256)):
        if getattr(options, name) is None:
            setattr(options, name, facts.recipe.get(name, default))
    network = load_network(options)
    classes = network.num_classes
    if not classes:
        raise ValueError(f"classify: expected a checkpoint with a classifier, got {options.checkpoint} without one")
    if not 1 <= options.top <= classes:
        raise ValueError(f"classify: expected --top from 1 to {classes}, the checkpoint's classes, got {options.top}")
    images = [load_image(image, options.size) for image in options.images]
    labels = facts.classes if options.labels is None and facts.classes else _labels(options.labels, classes)
    for name, image in zip(options.images, images, strict=True):
        best = network(image[None])[0].softmax(0).topk(options.top)
        print(name)
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"{100 * probability:8.2f} %  {labels[index]}")
    return 0


def _labels(
    file: Path | None,
    classes: int,
) -> list[str]:
    """The names of the classes: of the file, else timm's, else their numbers."""
    if file is not None:
        if not file.is_file():
            raise FileNotFoundError(f"classify: expected --labels to be a text file, got {file}")
        try:
            labels = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"classify: expected --labels to be a text file, got {file}, which is not UTF-8"
            ) from error
        if len(labels) != classes:
            raise ValueError(
                f"classify: expected a name a line for {classes} classes, got {len(labels)} lines in {file}"
            )
        return labels
    if classes == IMAGENET_CLASSES:
        try:
            from timm.data import ImageNetInfo
        except (ImportError, RuntimeError):  # RuntimeError: torchvision does not match torch
            print("classify: classes are shown by number; pip install timm, or give --labels", file=sys.stderr)
        else:
            names = ImageNetInfo()
            return [names.index_to_description(index) for index in range(classes)]
    else:
        print("classify: classes are shown by number; give their names by --labels", file=sys.stderr)
    return [f"class {index}" for index in range(classes)]
