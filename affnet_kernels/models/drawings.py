"""Pictures of what a network found: boxes with names on an image, and several images side by side."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from affnet_kernels.models.ssdlite import Detections

if TYPE_CHECKING:
    from PIL.Image import Image

GOLDEN = (math.sqrt(5) - 1) / 2  # of a turn of the hue from a class to the next one: neighbours differ, none returns


class Box(NamedTuple):
    """A box to draw."""

    corners: tuple[float, float, float, float]  # x1, y1, x2, y2 in the image's pixels; they may reach beyond it
    name: str
    label: int  # of its class, which gives the colour
    score: float


def boxes_to_draw(found: Detections, size: tuple[int, int], names: Sequence[str]) -> list[Box]:
    """What was found in an image, in its pixels.

    Args:
        found: boxes as parts of the image's sides.
        size: width and height of the image.
        names: of the classes, the background's first.
    """
    scale = torch.tensor(size, device=found.boxes.device).repeat(2)
    rows = zip((found.boxes * scale).tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    return [Box((x1, y1, x2, y2), names[label], label, score) for (x1, y1, x2, y2), label, score in rows]


def draw_boxes(image: Image, boxes: Sequence[Box]) -> Image:
    """A copy of an image with boxes, their names and scores; the better ones cover the others.

    Args:
        image: RGB, of any size: lines and letters grow with it.
        boxes: a part outside the image is not drawn.
    """
    from PIL import ImageDraw, ImageFont

    image = image.copy()
    draw = ImageDraw.Draw(image)
    width = max(1, round(min(image.size) / 150))
    font = ImageFont.load_default(max(10, min(image.size) / 25))
    margin = width + 1
    for box in sorted(boxes, key=lambda box: box.score):
        # A line far outside would take seconds, and an infinite one is an error.
        if any(map(math.isnan, box.corners)):
            continue
        x1, x2 = (round(min(max(x, -width), image.width + width)) for x in box.corners[::2])
        y1, y2 = (round(min(max(y, -width), image.height + width)) for y in box.corners[1::2])
        if not (max(x1, 0) < min(x2, image.width) and max(y1, 0) < min(y2, image.height)):
            continue
        colour = class_colour(box.label)
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=width)
        text = f"{box.name}: {100 * box.score:.0f} %"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        tall, wide = bottom - top + 2 * margin, right - left + 2 * margin
        # Above the box, or inside it where there is no room; never beyond the image's sides.
        x = min(max(x1, 0), max(0, image.width - wide))
        y = y1 - tall if y1 >= tall else max(y1, 0)
        draw.rectangle((x, y, x + wide, y + tall), fill=colour)
        draw.text((x + margin - left, y + margin - top), text, fill=_on(colour), font=font)
    return image


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class in all pictures, RGB from 0 to 255."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _on(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def as_picture(
    image: Tensor,  # [3, H, W], in [0, 1]
) -> Image:
    """A network's input as an image that can be drawn on and saved."""
    from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    height, width = pixels.shape[1:]
    return Image.frombytes("RGB", (width, height), pixels.permute(1, 2, 0).contiguous().numpy().tobytes())


def mosaic(images: Sequence[Image], side: int = 320) -> Image:
    """Images in rows of four, enlarged or reduced to cells of `side` x `side` pixels; at least one."""
    from PIL import Image

    columns = min(4, len(images))
    whole = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for index, image in enumerate(images):
        whole.paste(image.resize((side, side)), (index % columns * side, index // columns * side))
    return whole
