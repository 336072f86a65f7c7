"""What data sets of a user's own files share: images of any mode, masks of class numbers, lists, seeded transforms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from affnet_kernels.models.images import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
INDEXED = ("P", "L", "1", "I;16", "I;16B", "I;16L", "I")  # Pillow's modes whose values can be class numbers
MIN_SIDE = 8  # of an image to train on
MAX_RATIO = 20  # of its sides; a longer one would be resized to nothing


def read_pixels(
    path: str | os.PathLike[str],
    caller: str,
    upright: bool = True,
) -> Tensor:  # [3, H, W], uint8
    """An image file of any mode as RGB; `upright` as in `read_image`.

    Raises:
        ValueError: it is not an image, is damaged, of an unknown range, too small or too long.
        OSError: there is no such file, or it cannot be read.
    """
    image = read_image(path, caller, MIN_SIDE, upright)
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(
            f"{caller}: expected an image of at most {MAX_RATIO} times its height or width, got {image.width} x "
            f"{image.height} in {path}"
        )
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def read_mask(
    path: str | os.PathLike[str],
    caller: str,
) -> Tensor:  # [H, W], int64
    """The class numbers in an image file: a palette's indices or grey values, never colours.

    Raises:
        ValueError: it is not such an image, or is damaged.
        OSError: there is no such file, or it cannot be read.
    """
    import numpy as np
    from PIL import Image

    if not Path(path).is_file():
        raise FileNotFoundError(f"{caller}: expected a mask, got {path}, which does not exist")
    try:
        with Image.open(path) as mask:
            mask.load()
            values = np.asarray(mask) if mask.mode in INDEXED else None
            mode = mask.mode
    except PermissionError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ValueError(f"{caller}: expected a mask, got {path}, which Pillow cannot read: {error}") from error
    if values is None:
        raise ValueError(
            f"{caller}: expected a mask of class numbers (a palette's indices or grey values), got {mode} in {path}; "
            "convert its colours to class numbers"
        )
    return torch.from_numpy(values.astype(np.int64))


def read_lines(
    path: Path,
    caller: str,
) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        OSError: there is no such file.
        ValueError: it has no lines, or is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{caller}: expected a text file, got {path}, which does not exist")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{caller}: expected a text file, got {path}, which is not UTF-8") from error
    if not any(lines):
        raise ValueError(f"{caller}: expected a name a line, got {path}, which is empty")
    return [line for line in lines if line]


@contextmanager
def seeded(
    seed: int,
) -> Iterator[None]:
    """The global generator, from which torchvision's transforms draw, seeded inside and as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
