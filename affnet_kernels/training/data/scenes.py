"""Generated scenes for detection and segmentation: handwritten digits as stickers on photographs.

Digits and photographs are those that scikit-learn ships, so that training needs no download. Held-out scenes show
digits and parts of the photographs that no training scene shows.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from affnet_kernels.training.data import needs

if TYPE_CHECKING:
    from numpy.random import Generator

    from affnet_kernels.training.sampling import Draw

HELD_OUT_DIGITS = 360  # the last ones of 1,797
HELD_OUT_COLUMNS = slice(240, 400)  # the middle of each photograph, of 640 columns; its sides are for training
SMALLEST, LARGEST = 0.34, 0.62  # sides of 12 pixels, as parts of the image's shorter one; a sticker fills two thirds
STRETCH = 1.15  # of a sticker's sides against each other, at most
CROP = (96, 160)  # sides of the parts of the photographs that become backgrounds, in their pixels
EMPTY = 0.03  # of the scenes have no sticker
MAX_OVERLAP = 0.1  # of two boxes' intersection, as a part of the smaller one
ATTEMPTS = 12  # to place a sticker
LIGHT, DARK = (0.6, 1.0), (0.0, 0.35)  # channels of the colours of rims and of digits


class Scene(NamedTuple):
    """An image, and what is in it."""

    image: Tensor  # [3, H, W], float32 in [0, 1]
    boxes: Tensor  # [n, 4], float32: x1, y1, x2, y2 in pixels inside the image, the last two exclusive; n may be 0
    labels: Tensor  # [n], int64: classes, counted from 1
    mask: Tensor  # [H, W], int64: the class of each pixel, 0 for the background


class Scenes(Dataset[Scene]):
    """Scenes of up to `max_objects` digits, a few without any, each made when it is asked for.

    Args:
        count: how many there are; for training, how many an epoch has, since each epoch draws others.
        seed: of held-out scenes.
        train: draw from the digits and photographs for training, by `Draw.seed` alone; else from the held-out ones, by
            `seed` and `Draw.index` alone.
        classes: of the digits, 1 to 10: 3 for 0, 1 and 2.
        max_objects: in a scene, at least 1. A sticker that finds no free place is left out.

    Raises:
        ValueError: an argument is not as above; at a draw, the size is below 32 x 32.
        ImportError: scikit-learn or Pillow is not installed.
    """

    def __init__(self, count: int, seed: int = 0, *, train: bool, classes: int = 10, max_objects: int = 4) -> None:
        for right, expected, got in (
            (count >= 1, "count >= 1", count),
            (1 <= classes <= 10, "classes from 1 to 10", classes),
            (max_objects >= 1, "max_objects >= 1", max_objects),
        ):
            if not right:
                raise ValueError(f"Scenes: expected {expected}, got {got}")
        self.count, self.seed, self.train, self.max_objects = count, seed, train, max_objects
        self.names = tuple(str(digit) for digit in range(classes))
        """Of the classes from 1."""
        _sources(train, classes)  # what is missing should be missed now, not in a worker

    def __len__(self) -> int:
        return self.count

    def __getitem__(
        self,
        draw: Draw,
    ) -> Scene:
        if min(draw.size) < 32:
            raise ValueError(f"Scenes: expected images of at least 32 x 32, got {draw.size[0]} x {draw.size[1]}")
        from numpy.random import default_rng

        random = default_rng(draw.seed if self.train else (self.seed, draw.index))
        return _scene(random, _sources(self.train, len(self.names)), draw.size, self.max_objects)


def _scene(random: Generator, sources: tuple[Tensor, Tensor, Tensor], size: tuple[int, int], max_objects: int) -> Scene:
    photographs, stickers, digits = sources
    image = _background(random, photographs, size)
    mask = torch.zeros(size, dtype=torch.int64)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    empty = random.random() < EMPTY
    for _ in range(0 if empty else random.integers(1, max_objects, endpoint=True)):
        index = int(random.integers(len(digits)))
        height, width = _sides(random, size)
        rim, ink = F.interpolate(stickers[index : index + 1], (height, width), mode="bicubic", align_corners=False)[0]
        inside = rim > 0.5
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        y, x, bottom, right = (int(v) for v in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
        place = _place(random, size, (bottom - y, right - x), boxes)
        if place is None:
            continue
        rim, ink, inside = (t[y:bottom, x:right] for t in (_edge(rim), _edge(ink), inside))
        y1, x1, y2, x2 = place
        boxes.append(place)
        labels.append(int(digits[index]) + 1)
        of_rim, of_ink = _colours(random)
        behind = image[:, y1:y2, x1:x2]
        sticker = torch.lerp(of_rim, of_ink, ink)
        image[:, y1:y2, x1:x2] = torch.lerp(behind, sticker, rim)
        mask[y1:y2, x1:x2][inside] = labels[-1]
    noise = torch.from_numpy(random.standard_normal((3, *size), dtype="float32"))
    image = torch.add(image, noise, alpha=0.02).clamp_(0, 1)
    corners = [(x1, y1, x2, y2) for y1, x1, y2, x2 in boxes]
    return Scene(image, torch.tensor(corners).float().view(-1, 4), torch.tensor(labels, dtype=torch.int64), mask)


@cache
def _sources(
    train: bool,
    classes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of photographs [n, 3, H, W]; rims and strokes of the digits [N, 2, 12, 12], all in [0, 1]; digits [N]."""
    try:
        from sklearn.datasets import load_digits, load_sample_images

        images, digits = load_sample_images().images, load_digits()
    except ImportError as error:
        raise needs("Scenes", "scikit-learn and Pillow", error) from error
    photographs = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in images]).float() / 255
    strokes = torch.from_numpy(digits.images).float()[:, None] / 16
    strokes = F.pad(strokes, [2] * 4)
    rims = F.max_pool2d((2 * strokes).clamp_(max=1), 3, stride=1, padding=1)
    sides = photographs[..., : HELD_OUT_COLUMNS.start], photographs[..., HELD_OUT_COLUMNS.stop :]
    parts = torch.cat(sides) if train else photographs[..., HELD_OUT_COLUMNS]
    rows = slice(None, -HELD_OUT_DIGITS) if train else slice(-HELD_OUT_DIGITS, None)
    stickers, labels = torch.cat((rims, strokes), dim=1)[rows], torch.from_numpy(digits.target)[rows]
    wanted = labels < classes
    return parts, stickers[wanted], labels[wanted]


def _background(
    random: Generator,
    photographs: Tensor,  # [n, 3, H, W]
    size: tuple[int, int],
) -> Tensor:  # [3, *size]
    """A random part of a photograph, darkened, mirrored or not, of the sides' ratio that `size` has."""
    photograph = photographs[random.integers(len(photographs))]
    scale = random.uniform(*CROP) / max(size)
    height, width = (max(1, round(side * scale)) for side in size)
    y, x = (int(random.integers(0, photograph.shape[axis] - side + 1)) for axis, side in ((1, height), (2, width)))
    part = photograph[:, y : y + height, x : x + width]
    if random.integers(2):
        part = part.flip(-1)
    return F.interpolate(part[None], size, mode="bilinear", antialias=True)[0] * random.uniform(0.5, 0.9)


def _sides(
    random: Generator,
    size: tuple[int, int],
) -> tuple[int, int]:
    """Height and width of the 12 x 12 pixels of a sticker, blown up."""
    side = random.uniform(SMALLEST, LARGEST) * min(size)
    stretch = STRETCH ** random.uniform(-0.5, 0.5)
    return round(side * stretch), round(side / stretch)


def _place(
    random: Generator,
    size: tuple[int, int],
    sides: tuple[int, int],
    others: list[tuple[int, int, int, int]],  # y1, x1, y2, x2
) -> tuple[int, int, int, int] | None:
    """Where a sticker goes so that it covers little of the others; None if no place was found."""
    for _ in range(ATTEMPTS):
        y1, x1 = (int(random.integers(0, whole - side + 1)) for whole, side in zip(size, sides, strict=True))
        box = (y1, x1, y1 + sides[0], x1 + sides[1])
        if all(_overlap(box, other) <= MAX_OVERLAP for other in others):
            return box
    return None


def _overlap(
    a: tuple[int, int, int, int],
    b: tuple[int, int, int, int],
) -> float:
    """The intersection of two boxes as a part of the smaller one."""
    common = [min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]) for axis in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(0, common[0]) * max(0, common[1]) / min(areas)


def _edge(
    values: Tensor,  # [H, W]
) -> Tensor:  # [H, W]
    """A shape with an edge of about a tenth of its 12 pixels, from bicubic values that cross 0.5 at it."""
    return ((values - 0.5) * 4 + 0.5).clamp_(0, 1)


def _colours(
    random: Generator,
) -> tuple[Tensor, Tensor]:  # [3, 1, 1] each
    """Of a rim, a light one, and of a digit on it, a dark one."""
    rim, ink = (torch.from_numpy(random.uniform(*bounds, (3, 1, 1)).astype("float32")) for bounds in (LIGHT, DARK))
    return rim, ink
