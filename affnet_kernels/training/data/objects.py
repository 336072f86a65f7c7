"""What a data set for detection gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Objects(NamedTuple):
    """What evaluation is to find in an image."""

    boxes: Tensor  # [n, 4], float32: x1, y1, x2, y2 in pixels of the image as it is in its file
    labels: Tensor  # [n], int64, from 1
    crowds: Tensor  # [n], bool: a crowd, in which detections count neither as right nor as wrong
    areas: Tensor  # [n], float32: of the objects in pixels, by which they are small, medium or large


class Sample(NamedTuple):
    """An image, and what training should find in it."""

    image: Tensor  # [3, H, W], float32 in [0, 1]
    boxes: Tensor  # [n, 4], float32: x1, y1, x2, y2 as parts of W and H, inside the image, of positive area, no crowds
    labels: Tensor  # [n], int64, from 1
    number: int  # of the image in its data set
    size: tuple[int, int]  # H, W of the image in its file
    objects: Objects
