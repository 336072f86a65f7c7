"""Images from files, prepared as the official evaluation prepares them."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SIDE = 32  # the networks halve a map five times
MAX_RATIO = 8  # of an image's sides that are resized: the result shows their middle only


def load_image(
    path: str | os.PathLike[str],
    size: int = 256,
) -> Tensor:  # [3, size, size]
    """An image file as a network's input: short side resized to 9/8 of `size`, centre cropped, RGB, float32 in [0, 1].

    There is no normalisation by mean and deviation. Transparent pixels are laid over white, grey of 16 bits is scaled,
    the camera's orientation is applied, and of several frames the first is taken.

    Args:
        path: a file that Pillow can decode, of at least 32 x 32 pixels.
        size: height and width of the result, at least 32.

    Raises:
        ValueError: the file is not an image, is damaged, too small or too large, or of a mode without a known range.
        OSError: there is no such file, or it cannot be read.
        ImportError: Pillow is not installed.

    Source: the validation transforms of microsoft/TokenMixers (Pillow's bilinear filter, RGB / 255), and the sizes 288
    and 256 of the MobileViT recipe in apple/ml-cvnets, on which it is built.
    """
    if size < MIN_SIDE:
        raise ValueError(f"load_image: expected size >= {MIN_SIDE}, got {size}")
    return as_tensor(_resized(read_image(path), size))


def read_image(
    path: str | os.PathLike[str],
    caller: str = "load_image",
    min_side: int = MIN_SIDE,
    upright: bool = True,
) -> Image:
    """An image file as Pillow's RGB image at its own size, of any mode that `load_image` takes.

    Args:
        path: a file that Pillow can decode.
        caller: whom the messages name.
        min_side: least width and height.
        upright: apply the camera's orientation; masks and boxes are mostly made for the pixels as they are stored.

    Raises:
        ValueError, OSError, ImportError: as in `load_image`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{caller}: expected Pillow to be installed, got none; pip install pillow") from error
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{caller}: expected an image file, got {file}, which does not exist")
    if not file.is_file():
        raise OSError(f"{caller}: expected an image file, got {file}, which is not a file")
    if file.stat().st_size == 0:
        raise ValueError(f"{caller}: expected an image file, got {file}, which is empty")
    with warnings.catch_warnings():
        # Pillow warns of half the size that it refuses: large photographs are no attack.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file)
        except PermissionError as error:
            raise PermissionError(f"{caller}: expected a readable file, got {file}: {error.strerror}") from error
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise ValueError(
                f"{caller}: expected an image of at most {limit:,} pixels, got more in {file}; make it smaller first"
            ) from error
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            raise ValueError(f"{caller}: expected an image, got {file}, which Pillow cannot identify") from error
    with image:
        if min(image.size) < min_side:
            raise ValueError(
                f"{caller}: expected an image of at least {min_side} x {min_side} pixels, "
                f"got {image.width} x {image.height} in {file}"
            )
        try:
            image.load()
        except Exception as error:
            raise ValueError(f"{caller}: expected a complete image, got {file}: {error}") from error
        return _as_rgb(image, file, caller, upright)


def _as_rgb(
    image: Image,
    file: Path,
    caller: str,
    upright: bool,
) -> Image:
    from PIL import Image, ImageOps

    if upright:
        with suppress(Exception):  # damaged metadata leave the pixels as they are
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which some formats deliver in 32; Pillow itself would clip them
        image = image.convert("I")
        lowest, highest = cast(tuple[int, int], image.getextrema())
        if lowest < 0 or highest > 65535:
            raise ValueError(
                f"{caller}: expected grey values of 8 or 16 bits, got {lowest} to {highest} in {file}; scale them"
            )
        return image.point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode == "F":
        raise ValueError(f"{caller}: expected 8 or 16 bits a channel, got floating point in {file}; scale it first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _resized(
    image: Image,
    size: int,
) -> Image:
    """Resized by the short side and centre cropped; the far ends of a long panorama are cut off before."""
    from PIL.Image import Resampling

    longest = MAX_RATIO * min(image.size)
    image = _centre(image, min(image.width, longest), min(image.height, longest))
    short, width, height = size * 9 // 8, image.width, image.height
    shape = (int(short * width / height), short) if height < width else (short, int(short * height / width))
    return _centre(image.resize(shape, Resampling.BILINEAR), size, size)


def _centre(
    image: Image,
    width: int,
    height: int,
) -> Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def as_tensor(
    image: Image,  # RGB
) -> Tensor:  # [3, H, W], float32 in [0, 1]
    """The pixels of an image."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).permute(2, 0, 1).contiguous().float() / 255
