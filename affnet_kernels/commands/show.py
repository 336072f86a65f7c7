"""`show`: what the filters of a network see in an image."""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fft

from affnet_kernels.commands.networks import SEED, add_network_arguments, load_network, random_network
from affnet_kernels.files import replaced_file
from affnet_kernels.models.filters import Filter, filters_of, mixers_of, weights_at
from affnet_kernels.models.images import load_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFAULT_MODEL = "affnet_et"
DEFAULT_CHANNELS = 3  # of each layer
MAX_COLUMNS = 9  # of panels side by side
DPI = 100
TINY = 1e-30  # in place of 0, where a mask or a kernel is 0 everywhere
SIGNED, GREY = "RdBu_r", "#444444"
# In inches: of panels, the least width of a layer's panels (its name needs it), the image, and the gaps.
PANEL, LAYER, IMAGE, GAP, HEADER, MARGIN = 0.86, 1.9, 1.8, 0.07, 0.5, 0.12
LEGEND = (
    "Map: white is high. Mask: full plane, DC in the middle, logarithmic over three decades. Kernel, its centre in the "
    "middle{}: red is positive, blue negative, white 0. Each panel has its own scale."
)
LEGEND_OF_POSITIONS = ", and the weights with which the circled pixel sees the map"
Position = tuple[float, float]  # row and column: whole numbers count pixels of the map, others are parts of the map


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The image, the network, and what of it to draw."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--checkpoint", metavar="FILE", help="without one the weights are random")
    add_network_arguments(parser)
    parser.add_argument("--layer", nargs="+", metavar="NAME", help="filters; by default the first one of each stage")
    parser.add_argument(
        "--channels",
        nargs="+",
        type=int,
        metavar="INDEX",
        help=f"by default the {DEFAULT_CHANNELS} of the largest masks, by the mean of |M|^2 without DC",
    )
    parser.add_argument(
        "--position",
        nargs="+",
        default=[],
        metavar="ROW,COLUMN",
        help="a pixel of the maps, or as 0.25,0.5 a part of their height and width: draw the weights with which it sees"
        " the map",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="by default IMAGE's name with .filters.png")


def run(options: argparse.Namespace) -> int:
    """Draw feature maps, masks and the equivalent convolution kernels of a network's filters for an image."""
    out = options.out or Path(Path(options.image).stem + ".filters.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"show: expected --out to end in .png, got {out}")
    if not out.parent.is_dir():
        raise ValueError(f"show: expected --out in a folder that exists, got {out}")
    positions = [parse_position(text) for text in options.position]
    image = load_image(options.image, options.size)
    if out.exists() and out.samefile(options.image):
        raise ValueError(f"show: expected --out to be another file than the image, got {out}")
    if options.checkpoint is None:
        name = options.model or DEFAULT_MODEL
        network = random_network(name, options.activation, options.norm or "layer_norm_2d")
        weights = f"{name}, random weights"
        print(f"show: no --checkpoint, so the weights are random (seed {SEED}), not trained ones", file=sys.stderr)
    else:
        network, weights = load_network(options), Path(options.checkpoint).name
    layers = options.layer or first_of_each_stage(list(mixers_of(network)))
    filters = filters_of(network, image[None], list(dict.fromkeys(layers)))
    figure = draw(image, filters, options.channels, positions, f"{Path(options.image).name}: {weights}")
    _save(figure, out)
    print(out)
    return 0


def first_of_each_stage(layers: list[str]) -> list[str]:
    """The first of the layers in each stage, which their names begin with."""
    first: dict[str, str] = {}
    for layer in layers:
        first.setdefault(layer.partition(".")[0], layer)
    return list(first.values())


def parse_position(text: str) -> Position:
    """`ROW,COLUMN` as two whole numbers, or as two parts with a decimal point.

    Raises:
        ValueError: it is neither.
    """
    row, _, column = text.partition(",")
    try:
        return (float(row), float(column)) if "." in text else (int(row), int(column))
    except ValueError:
        raise ValueError(f"show: expected --position as ROW,COLUMN, such as 3,5 or 0.25,0.5, got {text}") from None


def pixel_at(
    position: Position,
    height: int,
    width: int,
) -> tuple[int, int]:
    """The pixel of a map that a position names.

    Raises:
        ValueError: it is outside the map.
    """
    row, column = position
    if isinstance(row, float):
        inside, bounds = 0 <= row < 1 and 0 <= column < 1, "0.0,0.0 to below 1.0,1.0"
        row, column = int(row * height), int(column * width)
    else:
        inside, bounds = 0 <= row < height and 0 <= column < width, f"0,0 to {height - 1},{width - 1}"
    if not inside:
        raise ValueError(
            f"show: expected --position inside the {height} x {width} map, {bounds}, got {position[0]},{position[1]}"
        )
    return int(row), int(column)


def strongest_channels(seen: Filter) -> list[int]:
    """The channels of the largest masks, by the mean of |M|^2 without DC, which is the kernel's variance."""
    energy = seen.kernels[0].var((-2, -1), correction=0)
    return energy.topk(min(DEFAULT_CHANNELS, len(energy))).indices.tolist()


def draw(
    image: Tensor,  # [3, size, size]
    filters: dict[str, Filter],  # of that image
    channels: list[int] | None,  # None for the strongest ones of each layer
    positions: list[Position],
    title: str,
) -> Figure:
    """The image, and beside it a column of panels for each channel: map, mask, kernel, weights at each position.

    Raises:
        ValueError: a channel or a position is outside a layer's maps.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("show: expected matplotlib to be installed, got none; pip install matplotlib") from error
    chosen = {layer: _checked(channels, layer, seen) or strongest_channels(seen) for layer, seen in filters.items()}
    most = max(len(indices) for indices in chosen.values())
    across = max(1, min(len(chosen), MAX_COLUMNS // most))  # layers side by side
    down = -(-len(chosen) // across)
    rows = 3 + len(positions)
    block = (max(LAYER, most * PANEL) + 4 * GAP, HEADER + rows * PANEL + GAP)  # width, height of a layer's panels
    left, top = 2 * MARGIN + IMAGE + 4 * GAP, 0.3
    width = left + across * block[0] + MARGIN
    legend = textwrap.wrap(LEGEND.format(LEGEND_OF_POSITIONS if positions else ""), int(19 * width))
    size = (width, top + max(HEADER + IMAGE, down * block[1]) + MARGIN + 0.13 * len(legend) + MARGIN)
    figure = Figure(size, dpi=DPI)

    def text(x: float, y: float, what: str, **style: Any) -> None:
        figure.text(x / size[0], 1 - y / size[1], what, parse_math=False, **style)

    def panel(x: float, y: float, side: float, values: Tensor, label: str, colours: str | None = None) -> Axes:
        axes = figure.add_axes((x / size[0], 1 - (y + side) / size[1], side / size[0], side / size[1]), label=label)
        largest = max(values.abs().max().item(), TINY)
        low, high = (-largest, largest) if colours == SIGNED else (None, None)
        axes.imshow(values.numpy(), colours, interpolation="nearest", vmin=low, vmax=high)
        axes.set_axis_off()
        return axes

    text(MARGIN, 0.24, _shortened(title, int(10 * width)), fontsize=10, weight="bold")
    text(MARGIN, size[1] - MARGIN, "\n".join(legend), fontsize=7, color=GREY, va="bottom")
    picture = panel(MARGIN, top + HEADER, IMAGE, image.permute(1, 2, 0), "image")
    for position in positions:
        if isinstance(position[0], float):
            _mark(picture, pixel_at(position, *image.shape[-2:]))
    for place, (layer, seen) in enumerate(filters.items()):
        x0, y0 = left + place % across * block[0], top + place // across * block[1]
        map_size = seen.x.shape[-2:]
        pixels = [pixel_at(position, *map_size) for position in positions]
        text(x0, y0 + 0.16, layer, fontsize=8, weight="bold")
        text(x0, y0 + 0.3, f"{map_size[0]} x {map_size[1]} map", fontsize=7, color=GREY)
        for column, channel in enumerate(chosen[layer]):
            text(x0 + column * PANEL, y0 + HEADER - 0.05, f"channel {channel}", fontsize=7)
            mask, kernel = seen.mask[0, channel].abs(), seen.kernels[0, channel]
            decades = mask.clamp_min(max(1e-3 * mask.max().item(), TINY)).log10()
            panels = [("map x", seen.x[0, channel], "gray"), ("mask |M|", fft.fftshift(decades), "magma")]
            panels += [("kernel", fft.fftshift(kernel), SIGNED)]
            panels += [(f"pixel {pixel[0]},{pixel[1]}", weights_at(kernel, *pixel), SIGNED) for pixel in pixels]
            for row, (name, values, colours) in enumerate(panels):
                y = y0 + HEADER + row * PANEL
                axes = panel(x0 + column * PANEL, y, PANEL - GAP, values, f"{layer}, {channel}, {name}", colours)
                if row >= 3:
                    _mark(axes, pixels[row - 3])
                if column == 0:
                    middle = y + (PANEL - GAP) / 2
                    text(x0 - 0.05, middle, name, fontsize=7, rotation=90, ha="right", va="center")
    return figure


def _checked(
    channels: list[int] | None,
    layer: str,
    seen: Filter,
) -> list[int] | None:
    count = seen.x.shape[1]
    for channel in channels or ():
        if not 0 <= channel < count:
            raise ValueError(f"show: expected --channels from 0 to {count - 1} for {layer}, got {channel}")
    return channels


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _mark(
    axes: Axes,
    pixel: tuple[int, int],  # row, column
) -> None:
    axes.plot(pixel[1], pixel[0], marker="o", markersize=6, color="none", markeredgecolor="black", markeredgewidth=1.2)


def _save(
    figure: Figure,
    out: Path,
) -> None:
    """Write a PNG of 256 colours, a third of the size; nothing that is half written is left under its name."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with replaced_file("show", out, out.suffix) as file:
        Image.open(drawn).convert("RGB").quantize(256, kmeans=1).save(file, "PNG", optimize=True)
