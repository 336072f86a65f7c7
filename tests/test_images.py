"""Images as a network's input: every mode, the official evaluation's sizes, and files that are none."""

from __future__ import annotations

import builtins
import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affnet_kernels.models.images import load_image

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

COLOUR = (200, 100, 50)


def flat(mode: str = "RGB", colour: Any = COLOUR, size: tuple[int, int] = (40, 48)) -> Image.Image:
    return Image.new(mode, size, colour)


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(640, 427, 256), (427, 640, 256), (288, 288, 256), (100, 90, 224), (333, 500, 64)]
)
def test_resized_and_cropped_as_the_official_evaluation(tmp_path: Path, width: int, height: int, size: int) -> None:
    image = noise(width, height)
    short = {256: 288, 224: 252, 64: 72}[size]
    scaled = (short, short * height // width) if width < height else (short * width // height, short)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    expected = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    got = load_image(saved(tmp_path, image), size)
    assert got.shape == (3, size, size)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert torch.equal(got, torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        pytest.param(flat(), "a.png", COLOUR, id="RGB, in that order"),
        pytest.param(flat("L", 77), "a.png", (77,) * 3, id="grey"),
        pytest.param(flat("1", 1), "a.png", (255,) * 3, id="black and white"),
        pytest.param(flat().convert("P", palette=Image.Palette.ADAPTIVE), "a.png", COLOUR, id="palette"),
        pytest.param(flat("RGBA", (*COLOUR, 255)), "a.png", COLOUR, id="opaque"),
        pytest.param(flat("RGBA", (0, 0, 0, 0)), "a.png", (255,) * 3, id="transparent, over white"),
        pytest.param(flat("RGBA", (200, 100, 50, 51)), "a.png", (244, 224, 214), id="20 % opaque, over white"),
        pytest.param(flat("LA", (0, 0)), "a.png", (255,) * 3, id="transparent grey"),
        pytest.param(flat("CMYK", (255, 0, 0, 0)), "a.tif", (0, 255, 255), id="CMYK"),
        pytest.param(flat("CMYK", (255, 0, 0, 0)), "a.jpg", (0, 255, 255), id="CMYK in a JPEG"),
        pytest.param(flat("I;16", 257 * 77), "a.png", (77,) * 3, id="16-bit grey, not clipped"),
        pytest.param(flat("I;16B", 257 * 77), "a.tif", (77,) * 3, id="16-bit grey, other byte order"),
        pytest.param(flat("I", 257 * 77), "a.pgm", (77,) * 3, id="16-bit grey in a PGM, which Pillow opens as 32"),
        pytest.param(flat("I;16", 65535), "a.png", (255,) * 3, id="16-bit white"),
    ],
)
def test_modes(tmp_path: Path, image: Image.Image, name: str, expected: tuple[int, int, int]) -> None:
    got = load_image(saved(tmp_path, image, name), 32)
    assert torch.allclose(got, torch.tensor(expected)[:, None, None] / 255, atol=1.5 / 255)


def test_16_bits_are_rounded(tmp_path: Path) -> None:
    for value, expected in ((257 * 77 + 128, 77), (257 * 77 + 129, 78), (65535, 255), (128, 0)):
        got = load_image(saved(tmp_path, flat("I;16", value)), 32)
        assert torch.equal(got, torch.full((3, 32, 32), expected) / 255)


def test_a_transparent_colour_of_a_palette(tmp_path: Path) -> None:
    image = flat("P", 1)
    image.putpalette([255, 0, 0, 10, 20, 30])
    for transparent, expected in ((0, (10, 20, 30)), (1, (255, 255, 255))):
        got = load_image(saved(tmp_path, image, transparency=transparent), 32)
        assert torch.equal(got, torch.tensor(expected)[:, None, None].expand(3, 32, 32) / 255)


def test_orientation(tmp_path: Path) -> None:
    image = flat(size=(64, 40))
    image.paste((0, 0, 0), (0, 0, 32, 40))  # the left half is black
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    got = load_image(saved(tmp_path, image, "a.jpg", exif=exif), 32)
    assert got[:, :12].mean() < 0.05
    assert got[0, 20:].mean() > 0.7


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_damaged_metadata_are_ignored(tmp_path: Path, name: str) -> None:
    load_image(saved(tmp_path, flat(), name, exif=b"Exif\0\0garbage"), 32)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = saved(tmp_path, flat(), "a.gif", save_all=True, append_images=[flat(colour=(0, 0, 0))])
    assert load_image(path, 32)[0].mean() > 0.7


def test_a_long_panorama_is_not_resized_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resize, sizes = Image.Image.resize, []

    def watch(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *arguments)

    image = flat(size=(40_000, 32))
    image.paste((0, 0, 0), (0, 0, 20_000, 32))
    path = saved(tmp_path, image)
    monkeypatch.setattr(Image.Image, "resize", watch)
    got = load_image(path, 256)
    assert sizes == [(8 * 288, 288)]
    assert got[:, :, :120].max() == 0
    assert got[0, :, 136:].min() > 0.7


def message(path: Path, size: int = 256, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        load_image(path, size)
    assert type(caught.value) is error
    return str(caught.value)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    missing, empty, text, folder = (tmp_path / name for name in ("missing.jpg", "empty.jpg", "text.jpg", "folder.jpg"))
    empty.touch()
    text.write_text("not an image")
    folder.mkdir()
    expected = "load_image: expected an image"
    assert message(missing, error=FileNotFoundError) == f"{expected} file, got {missing}, which does not exist"
    assert message(folder, error=OSError) == f"{expected} file, got {folder}, which is not a file"
    assert message(empty) == f"{expected} file, got {empty}, which is empty"
    assert message(text) == f"{expected}, got {text}, which Pillow cannot identify"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_a_truncated_file(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, noise(64, 64), name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    said = message(path)
    complete = re.fullmatch(rf"load_image: expected a complete image, got {re.escape(str(path))}: \S.*", said)
    assert complete or (name == "a.webp" and said.endswith("which Pillow cannot identify"))  # its header has the length


def test_a_damaged_file(tmp_path: Path) -> None:
    path = saved(tmp_path, noise(64, 64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert message(path).startswith(f"load_image: expected a complete image, got {path}: ")


@pytest.mark.parametrize("size", [(31, 200), (200, 31), (1, 1)])
def test_a_small_image(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path, flat(size=size))
    assert message(path) == (
        f"load_image: expected an image of at least 32 x 32 pixels, got {size[0]} x {size[1]} in {path}"
    )
    assert load_image(saved(tmp_path, flat(size=(32, 32))), 32).shape == (3, 32, 32)


def test_a_decompression_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(50_000))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert message(path) == (
        f"load_image: expected an image of at most 178,956,970 pixels, got more in {path}; make it smaller first"
    )


@pytest.mark.filterwarnings("error")
def test_a_large_photograph_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, flat(size=(60, 60)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert load_image(path, 32).shape == (3, 32, 32)


def test_values_without_a_known_range(tmp_path: Path) -> None:
    path = saved(tmp_path, flat("F", 0.5), "a.tif")
    assert message(path) == (
        f"load_image: expected 8 or 16 bits a channel, got floating point in {path}; scale it first"
    )
    path = saved(tmp_path, flat("I", 70_000), "b.tif")
    assert message(path) == (
        f"load_image: expected grey values of 8 or 16 bits, got 70000 to 70000 in {path}; scale them"
    )


def test_size_of_the_result(tmp_path: Path) -> None:
    assert message(saved(tmp_path, flat()), 31) == "load_image: expected size >= 32, got 31"


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root may read every file, opening is made to fail."""
    path = saved(tmp_path, flat())
    opened = builtins.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> io.IOBase:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    assert message(path, error=PermissionError) == (
        f"load_image: expected a readable file, got {path}: Permission denied"
    )


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, flat())
    monkeypatch.setattr(builtins, "__import__", _without("PIL"))
    assert (
        message(path, error=ImportError) == "load_image: expected Pillow to be installed, got none; pip install pillow"
    )


def _without(package: str) -> Callable[..., Any]:
    real = builtins.__import__

    def guarded(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *arguments, **options)

    return guarded
