"""Pictures of segmentations: class colours, maps of classes as PNG, overlays with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affnet_kernels.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKGROUND = "background"
OPACITY = 0.6  # of the colours over an image
LEGEND_ROWS = 24  # of a column
LEGEND_SHOWN = 48  # of the classes, the most frequent first
DPI = 100


def palette(count: int) -> Tensor:  # [count, 3], uint8
    """Pascal VOC's colours: the bits of a class number, spread over the high bits of red, green and blue."""
    numbers = torch.arange(count)
    colours = torch.zeros(count, 3, dtype=torch.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.to(torch.uint8)


def overlay(
    image: Tensor,  # [3, H, W], in [0, 1]
    found: Tensor,  # [H, W], int64: a class each; IGNORED ones are shown white
    classes: Sequence[str],
) -> Tensor:  # [H, W, 3], in [0, 1]
    """The image under the colours of its classes, but where they are the background."""
    colours = torch.full((256, 3), 255, dtype=torch.uint8)
    colours[: len(classes)] = palette(len(classes))
    opacity = torch.full((256, 1), OPACITY)
    if classes[0] == BACKGROUND:
        opacity[0] = 0
    return torch.lerp(image.permute(1, 2, 0).float(), colours[found].float() / 255, opacity[found])


def save_map(
    found: Tensor,  # [H, W], int64
    classes: Sequence[str],
    path: Path,
) -> None:
    """Write the class of each pixel as a PNG whose palette's index it is.

    Raises:
        OSError, ValueError: as in `replaced_file`.
    """
    from PIL import Image

    height, width = found.shape
    image = Image.frombytes("P", (width, height), found.to(torch.uint8).numpy().tobytes())
    image.putpalette(palette(len(classes)).flatten().tolist())
    with replaced_file("segment", path, path.suffix) as file:
        image.save(file, "PNG")


def draw_overlay(
    image: Tensor,  # [3, H, W], in [0, 1]
    found: Tensor,  # [H, W], int64
    classes: Sequence[str],
    shares: dict[int, float],  # of the image's pixels, by class: the legend's rows in order
    path: Path,
) -> None:
    """Write the image under the colours of its classes, with a legend.

    Raises:
        ImportError: matplotlib is not installed.
        OSError, ValueError: as in `replaced_file`.
    """
    figure, axes = _figure(1, 1, image.shape[-1] / image.shape[-2])
    axes[0][0].imshow(overlay(image, found, classes).numpy())
    shown = list(shares.items())[:LEGEND_SHOWN]
    _legend(figure, {f"{100 * share:5.1f} %  {classes[index]}": index for index, share in shown}, classes)
    with replaced_file("segment", path, path.suffix) as file:
        figure.savefig(file, dpi=DPI, bbox_inches="tight", format="png")


def draw_maps(
    images: Tensor,  # [n, 3, H, W], in [0, 1]
    masks: Tensor,  # [n, H, W], int64
    found: Tensor,  # [n, H, W], int64
    classes: Sequence[str],
    path: Path,
) -> None:
    """Write a column for each image: itself, its mask over it, and what was found.

    Raises:
        ImportError: matplotlib is not installed.
        OSError, ValueError: as in `replaced_file`.
    """
    figure, axes = _figure(3, len(images), images.shape[-1] / images.shape[-2])
    for column, (image, mask, got) in enumerate(zip(images, masks, found, strict=True)):
        axes[0][column].imshow(image.permute(1, 2, 0).numpy())
        axes[1][column].imshow(overlay(image, mask, classes).numpy())
        axes[2][column].imshow(overlay(image, got, classes).numpy())
    for row, title in enumerate(("image", "its mask", "found")):
        axes[row][0].set_title(title, loc="left", fontsize=9)
    occurring = torch.cat((masks.flatten(), found.flatten())).unique().tolist()
    _legend(figure, {classes[index]: index for index in occurring if index < len(classes)}, classes)
    with replaced_file("train", path, path.suffix) as file:
        figure.savefig(file, dpi=DPI, bbox_inches="tight", format="png")


def _figure(rows: int, columns: int, ratio: float) -> tuple[Any, list[list[Axes]]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"segmentation: pictures need matplotlib, got {error}; pip install matplotlib") from error
    height = 6.0 if rows * columns == 1 else 2.0
    figure = Figure((max(0.25, min(4.0, ratio)) * height * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    return figure, axes.tolist()


def _legend(
    figure: Any,
    rows: dict[str, int],  # class by text
    classes: Sequence[str],
) -> None:
    from matplotlib.patches import Patch

    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(len(classes)).tolist()]
    patches = [Patch(facecolor=colours[index], edgecolor="grey", label=text) for text, index in rows.items()]
    columns = -(-len(patches) // LEGEND_ROWS)
    figure.legend(handles=patches, loc="outside right upper", fontsize=8, ncols=columns, frameon=False)
