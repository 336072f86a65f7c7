"""`detect`: what is where in an image."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.files import replaced_file
from affnet_kernels.models.dense_checkpoints import detector_from_checkpoint, training_facts
from affnet_kernels.models.drawings import boxes_to_draw, draw_boxes
from affnet_kernels.models.images import MIN_SIDE, as_tensor, read_image
from affnet_kernels.models.layers import NORMS
from affnet_kernels.models.ssdlite import SSDLite

DEFAULT_SIZE = 320


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The image, the network, and the names of its classes."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, metavar="FILE")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="a name a line, without the background; by default the file's own"
    )
    parser.add_argument("--min-score", type=float, default=0.3, help="probability from which a box is shown")
    parser.add_argument("--size", type=int, help="height and width that the network sees; by default that of training")
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, help="of the backbone; by default that of training, or silu"
    )
    parser.add_argument("--norm", choices=NORMS, help="needed for layer_norm, which has the keys of layer_norm_2d")
    parser.add_argument(
        "--head-activation", choices=ACTIVATIONS, help="of heads and extra layers; by default that of training, or relu"
    )
    parser.add_argument("--out", type=Path, default=Path("boxes.png"), metavar="FILE.png", help="the picture")


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Print the objects in an image, in its own pixels, and draw them, by an SSDLite of a checkpoint."""
    if not 0 <= options.min_score < 1:
        raise ValueError(f"detect: expected --min-score from 0 to below 1, got {options.min_score}")
    image = read_image(options.image, "detect")
    if options.out.exists() and options.out.samefile(options.image):
        raise ValueError(f"detect: expected --out to be another file than the image, got {options.out}")
    given = {name: getattr(options, name) for name in ("activation", "norm", "head_activation")}
    network = detector_from_checkpoint(
        options.checkpoint, **{name: value for name, value in given.items() if value is not None}
    )
    facts = training_facts(options.checkpoint)
    names = ["background", *_labels(options.labels, network, facts.classes)]
    size = options.size or facts.recipe.get("size", DEFAULT_SIZE)
    if size < MIN_SIDE:
        raise ValueError(f"detect: expected --size >= {MIN_SIDE}, got {size}")
    # The ratio of the sides changes, as it did in training.
    seen = F.interpolate(as_tensor(image)[None], (size, size), mode="bilinear", antialias=True)
    scores, offsets = network(seen)
    (found,) = network.detections(scores, offsets, size, min_score=options.min_score)
    boxes = boxes_to_draw(found, image.size, names)
    with replaced_file("detect", options.out, ".png") as file:
        draw_boxes(image, boxes).save(file)
    for box in boxes:
        x1, y1, x2, y2 = (round(value) for value in box.corners)
        print(f"{100 * box.score:8.2f} %  {box.name:<16} {x1:5d} {y1:5d} {x2:5d} {y2:5d}")
    if not boxes:
        print(f"nothing with a score above {options.min_score}")
    print(options.out)
    return 0


def _labels(
    file: Path | None,
    network: SSDLite,
    classes: list[str] | None,
) -> list[str]:
    """The names of the classes from 1: of the file, else the checkpoint's, else their numbers."""
    count = network.num_classes - 1
    if file is None:
        return (
            classes[1:] if classes and len(classes) == count + 1 else [f"class {index + 1}" for index in range(count)]
        )
    if not file.is_file():
        raise FileNotFoundError(f"detect: expected --labels to be a text file, got {file}")
    try:
        labels = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"detect: expected --labels to be a text file, got {file}, which is not UTF-8") from error
    if len(labels) != count:
        raise ValueError(f"detect: expected a name a line for {count} classes, got {len(labels)} lines in {file}")
    return labels
