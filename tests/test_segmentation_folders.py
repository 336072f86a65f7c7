"""Segmentation data in folders, as VOC and ADE20K lay them out: what is read, and what is wrong with them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from affnet_kernels.models import AFFNet
from affnet_kernels.models.segmenters import segmenter_from_checkpoint
from affnet_kernels.training import Recipe, Settings, train
from affnet_kernels.training.data.files import read_lines, read_mask, read_pixels, seeded
from affnet_kernels.training.data.voc import IGNORED, VOC_CLASSES, Masks, Pair, augment, read_folder
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import segmentation

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed; make test-timm has it"
)
PALETTE = [value for index in range(256) for value in (index, 255 - index, (37 * index) % 256)]
SIDES = (64, 48)  # of the images, W and H


def labels(classes: int = 21) -> np.ndarray[Any, Any]:
    """A map [48, 64] of rectangles of classes, with ignored pixels between two of them."""
    values = np.zeros((48, 64), np.uint8)
    values[8:40, 4:30] = 1
    values[8:40, 30:32] = IGNORED
    values[8:40, 32:60] = classes - 1
    return values


def picture(values: np.ndarray[Any, Any]) -> Image.Image:
    """An image whose red channel tells the class."""
    pixels = np.stack([values, np.full_like(values, 40), np.full_like(values, 200)], axis=-1)
    return Image.fromarray(pixels)


def palette_image(values: np.ndarray[Any, Any]) -> Image.Image:
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette(PALETTE)
    return image


def voc_folder(root: Path, train: tuple[str, ...] = ("a", "b", "c"), val: tuple[str, ...] = ("d",)) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name in {*train, *val}:
        picture(labels()).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        palette_image(labels()).save(root / "SegmentationClass" / f"{name}.png")
    for split, names in (("train", train), ("val", val)):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def ade_folder(root: Path, names: tuple[str, str] = ("training", "validation")) -> Path:
    for split in names:
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        picture(labels(151)).save(root / "images" / split / "one.jpg")
        Image.fromarray(labels(151)).save(root / "annotations" / split / "one.png")
    return root


# what a folder is


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_layout(tmp_path: Path, inner: str) -> None:
    root = voc_folder(tmp_path / inner)
    folder = read_folder(tmp_path)
    assert folder.names == VOC_CLASSES
    assert folder.first == 0
    assert [pair.image.stem for pair in folder.pairs["train"]] == ["a", "b", "c"]
    assert folder.pairs["val"] == [Pair(root / "JPEGImages/d.jpg", root / "SegmentationClass/d.png")]


@pytest.mark.parametrize("names", [("training", "validation"), ("train", "val")])
def test_ade20k_layout(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = read_folder(ade_folder(tmp_path, names))
    assert len(folder.names) == 150
    assert folder.first == 1
    assert folder.pairs["val"] == [
        Pair(
            *(
                tmp_path / f"{kind}/{names[1]}/one.{suffix}"
                for kind, suffix in (("images", "jpg"), ("annotations", "png"))
            )
        )
    ]


def test_names_of_the_classes(tmp_path: Path) -> None:
    voc_folder(tmp_path)
    (tmp_path / "labels.txt").write_text("nothing\nthing\n")
    assert read_folder(tmp_path).names == ("nothing", "thing")
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(256))))
    with pytest.raises(ValueError, match="expected at most 255 classes, got 256"):
        read_folder(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder, got .*nowhere, which does not exist"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"expected JPEGImages, .* or images and annotations, got .*, which has neither"
    ):
        read_folder(tmp_path)
    voc_folder(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    (lists / "val.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"expected a name a line, got .*val\.txt, which is empty"):
        read_folder(tmp_path)
    (lists / "val.txt").write_text("x\ny\n")
    with pytest.raises(
        ValueError, match=r"expected images with masks, got 2 for val, none of which has both, .*x\.jpg"
    ):
        read_folder(tmp_path)
    (lists / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a text file, got .*val\.txt, which does not exist"):
        read_folder(tmp_path)


def test_ade20k_folders_without_images(tmp_path: Path) -> None:
    ade_folder(tmp_path)
    (tmp_path / "images/validation/one.jpg").unlink()
    with pytest.raises(ValueError, match=r"expected images in .*validation, got none with a suffix of \.jpg, "):
        read_folder(tmp_path)
    (tmp_path / "images/validation").rmdir()
    with pytest.raises(FileNotFoundError, match="expected a folder images/validation or images/val, got none in"):
        read_folder(tmp_path)


# what a file is


def test_masks_are_read_as_numbers(tmp_path: Path) -> None:
    values = labels()
    kinds = {
        "palette.png": palette_image(values),
        "grey.png": Image.fromarray(values),
        "deep.png": Image.fromarray(values.astype(np.uint16)),
        "deep.tif": Image.fromarray(values.astype(np.uint16)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        mask = read_mask(tmp_path / name, "test")
        assert mask.dtype == torch.int64
        assert torch.equal(mask, torch.from_numpy(values).long()), name
    Image.fromarray(values > 0).save(tmp_path / "bits.png")
    assert torch.equal(read_mask(tmp_path / "bits.png", "test"), torch.from_numpy(values > 0).long())


def test_masks_that_are_none(tmp_path: Path) -> None:
    picture(labels()).save(tmp_path / "colours.png")
    with pytest.raises(
        ValueError, match=r"test: expected a mask of class numbers .*, got RGB in .*colours\.png; convert"
    ):
        read_mask(tmp_path / "colours.png", "test")
    with pytest.raises(FileNotFoundError, match=r"test: expected a mask, got .*none\.png, which does not exist"):
        read_mask(tmp_path / "none.png", "test")
    palette_image(labels()).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) - 60])
    with pytest.raises(ValueError, match=r"test: expected a mask, got .*cut\.png, which Pillow cannot read"):
        read_mask(tmp_path / "cut.png", "test")


def test_images_of_any_mode(tmp_path: Path) -> None:
    picture(labels()).save(tmp_path / "rgb.png")
    expected = torch.from_numpy(np.array(picture(labels()))).permute(2, 0, 1)
    assert torch.equal(read_pixels(tmp_path / "rgb.png", "test"), expected)
    for mode, name in (("L", "a.png"), ("CMYK", "a.jpg"), ("RGBA", "b.png"), ("P", "c.png"), ("I;16", "d.png")):
        Image.new(mode, SIDES).save(tmp_path / name)
        assert read_pixels(tmp_path / name, "test").shape == (3, 48, 64)


def test_images_that_are_none(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    with pytest.raises(
        ValueError, match=r"test: expected an image of at least 8 x 8 pixels, got 1 x 1 in .*pixel\.png"
    ):
        read_pixels(tmp_path / "pixel.png", "test")
    Image.new("RGB", (8, 161)).save(tmp_path / "thread.png")
    with pytest.raises(ValueError, match=r"at most 20 times its height or width, got 8 x 161 in .*thread\.png"):
        read_pixels(tmp_path / "thread.png", "test")


def test_orientation_is_left_out_where_masks_are_made_for_stored_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    picture(labels()).save(tmp_path / "a.jpg", exif=exif)
    assert read_pixels(tmp_path / "a.jpg", "test").shape == (3, 64, 48)
    assert read_pixels(tmp_path / "a.jpg", "test", upright=False).shape == (3, 48, 64)


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a\n\n b \r\n")
    assert read_lines(tmp_path / "lines.txt", "test") == ["a", "b"]
    (tmp_path / "lines.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"test: expected a text file, got .*lines\.txt, which is not UTF-8"):
        read_lines(tmp_path / "lines.txt", "test")


def test_seeded_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(7):
        first = torch.rand(3)
    assert torch.equal(torch.rand(2), expected)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)


# samples


@needs_torchvision
def test_held_out_samples_are_resized(tmp_path: Path) -> None:
    data = Masks(read_folder(voc_folder(tmp_path)), train=False)
    image, mask = data[Draw(0, 5, (48, 64))]
    assert torch.equal(mask, torch.from_numpy(labels()).long())
    assert image.dtype == torch.float32
    assert type(image) is type(mask) is Tensor
    assert 0 <= image.min() <= image.max() <= 1
    image, mask = data[Draw(0, 5, (96, 32))]
    assert image.shape == (3, 96, 32)
    assert set(mask.unique().tolist()) == {0, 1, 20, IGNORED}


@needs_torchvision
def test_class_numbers_of_ade20k_begin_at_1(tmp_path: Path) -> None:
    folder = read_folder(ade_folder(tmp_path))
    mask = Masks(folder, train=False)[Draw(0, 0, (48, 64))].mask
    values = torch.from_numpy(labels(151)).long()
    assert torch.equal(mask, torch.where((values == 0) | (values == IGNORED), IGNORED, values - 1))


@needs_torchvision
def test_augmentation_moves_the_mask_with_the_image(tmp_path: Path) -> None:
    """Red tells the class, so image and mask can be compared after every transform but the one of colours."""
    values = np.where(labels() == IGNORED, 0, labels() * 12).astype(np.uint8)
    folder = voc_folder(tmp_path)
    for name in "abc":
        picture(values).save(folder / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
    data = Masks(read_folder(folder), train=True, photometric=False)
    seen = set()
    for seed in range(12):
        image, mask = data[Draw(0, seed, (96, 96))]
        assert image.shape == (3, 96, 96)
        assert mask.shape == (96, 96)
        told = torch.where(mask == IGNORED, 0, mask * 12)
        inside = mask != IGNORED
        agree = (255 * image[0] - told).abs()[inside] < 20
        assert agree.float().mean() > 0.8  # the edges are blurred
        assert (image[:, mask == IGNORED].sum(0) == 0).float().mean() < 1  # ignored pixels are not all padding
        seen.add(mask.sum().item())
    assert len(seen) == 12
    assert any(
        (Masks(read_folder(folder), train=True)[Draw(0, s, (96, 96))].mask[0] == IGNORED).any() for s in range(4)
    )


@needs_torchvision
def test_samples_are_pure_functions_of_their_draws(tmp_path: Path) -> None:
    data = Masks(read_folder(voc_folder(tmp_path)), train=True)
    torch.manual_seed(0)
    first = data[Draw(1, 77, (64, 64))]
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    again = data[Draw(1, 77, (64, 64))]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first.image, data[Draw(1, 78, (64, 64))].image)


@needs_torchvision
def test_each_augmentation_can_be_left_out() -> None:
    names = [
        [type(step).__name__ for step in augment((64, 64), 0.5, 1.5, *options).transforms]  # type: ignore[attr-defined]
        for options in ((10.0, True, True), (0.0, False, False))
    ]
    assert names[0] == [
        "RandomShortestSize",
        "RandomHorizontalFlip",
        "RandomCrop",
        "RandomPhotometricDistort",
        "RandomRotation",
    ]
    assert names[1] == ["RandomShortestSize", "RandomCrop"]


@needs_torchvision
def test_what_is_wrong_with_a_sample_is_said(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path, ("short", "cut", "range", "image", "mask"))
    Image.new("P", (10, 10)).save(folder / "SegmentationClass/short.png")
    content = (folder / "JPEGImages/cut.jpg").read_bytes()
    (folder / "JPEGImages/cut.jpg").write_bytes(content[: len(content) - 100])
    palette_image(np.full((48, 64), 21, np.uint8)).save(folder / "SegmentationClass/range.png")
    (folder / "JPEGImages/image.jpg").unlink()
    (folder / "SegmentationClass/mask.png").unlink()
    data = Masks(read_folder(folder), train=True)
    expected = {
        0: "expected a mask of 64 x 48 pixels, as its image, got 10 x 10 in {}/SegmentationClass/short.png",
        1: "expected a complete image, got {}/JPEGImages/cut.jpg: ",
        2: "expected mask values from 0 to 20, or 255 to ignore, got 21 in {}/SegmentationClass/range.png",
        3: "expected an image file, got {}/JPEGImages/image.jpg, which does not exist",
        4: "expected a mask, got {}/SegmentationClass/mask.png, which does not exist",
    }
    for index, text in expected.items():
        with pytest.raises((ValueError, OSError), match=re.escape("segmentation: " + text.format(folder))):
            data[Draw(index, 0, (64, 64))]


@needs_torchvision
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"smallest": 0.0}, "0 < smallest <= largest, got 0.0 and 1.5"),
        ({"smallest": 2.0}, "0 < smallest <= largest, got 2.0 and 1.5"),
        ({"rotation": -1.0}, "rotation from 0 to 180, got -1.0"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"segmentation: expected {expected}"):
        Masks(read_folder(voc_folder(tmp_path)), train=True, **options)


@needs_torchvision
def test_training_names_what_it_skips_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

    def create(name: str, **options: Any) -> AFFNet:
        return AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2, **options)

    monkeypatch.setattr(segmentation, "create_model", create)
    folder = voc_folder(tmp_path / "data", tuple("abcdefgh"), tuple("uvwx"))
    Image.new("P", (10, 10)).save(folder / "SegmentationClass/b.png")
    palette_image(np.full((48, 64), 99, np.uint8)).save(folder / "SegmentationClass/d.png")
    palette_image(np.full((48, 64), IGNORED, np.uint8)).save(folder / "SegmentationClass/e.png")
    (folder / "JPEGImages/f.jpg").write_bytes((folder / "JPEGImages/f.jpg").read_bytes()[:-200])
    Image.new("L", (1, 1)).save(folder / "JPEGImages/g.jpg")
    Image.new("CMYK", SIDES).save(folder / "JPEGImages/h.jpg")
    (folder / "SegmentationClass/v.png").unlink()
    small = {"size": 32, "epochs": 2, "batch": 4, "accumulate": 1, "warmup_epochs": 0.0, "amp": "off"}
    recipe = Recipe.load("deeplabv3_voc").replace(data=str(folder), options={"aspp_channels": 8}, **small)
    summary = train(recipe, Settings(out=tmp_path / "run", progress=False))
    named = sorted(Path(path).name for text in summary.skipped for path in re.findall(r"\S+\.(?:png|jpg)", text))
    assert named == ["b.png", "d.png", "f.jpg", "g.jpg", "v.png"]
    assert capsys.readouterr().err.count("skipped: segmentation: expected ") == 5
    assert 0 <= summary.best <= 100
    assert (tmp_path / "run/predictions.png").exists()
    best = segmenter_from_checkpoint(tmp_path / "run/best.pt")
    assert best.classes == list(VOC_CLASSES)
