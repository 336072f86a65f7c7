"""Segmentation data in folders, as Pascal VOC and ADE20K lay them out, with torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from affnet_kernels.training.data import needs
from affnet_kernels.training.data.files import SUFFIXES, read_lines, read_mask, read_pixels, seeded

if TYPE_CHECKING:
    from affnet_kernels.training.sampling import Draw

IGNORED = 255  # in a mask: a pixel that neither loss nor metrics count
NAMES_FILE = "labels.txt"  # in the data's folder: the name of a class a line, from mask value 0 (ADE20K: 1)
VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
VOC_CLASSES = tuple(VOC_NAMES.split())
ADE_CLASSES = 150
LAYOUTS = "JPEGImages, SegmentationClass and ImageSets/Segmentation, or images and annotations"


class Pair(NamedTuple):
    """The files of a sample."""

    image: Path
    mask: Path


class Sample(NamedTuple):
    """An image and the class of each pixel."""

    image: Tensor  # [3, H, W], float32 in [0, 1]
    mask: Tensor  # [H, W], int64: 0 to the number of classes - 1, or IGNORED


class Folder(NamedTuple):
    """What a folder holds."""

    names: tuple[str, ...]  # of the classes
    first: int  # mask value of class 0; lower ones are ignored
    pairs: dict[str, list[Pair]]  # of "train" and "val"


def read_folder(root: str | Path) -> Folder:
    """The classes and files of a folder in either layout.

    The layouts are VOC's (also inside `VOCdevkit/VOC2012`): `JPEGImages/*.jpg`, `SegmentationClass/*.png` and the lists
    `ImageSets/Segmentation/{train,val}.txt`; and ADE20K's: `images/{training,validation}` (or `train`, `val`) with
    `annotations` of the same names, where mask value 0 is ignored and class 0 is 1. A file `labels.txt` names the
    classes; without one they are VOC's 21, or ADE20K's 150 by number.

    Raises:
        OSError: there is no such folder or list.
        ValueError: it has neither layout, a list is empty, or no entry of it has both an image and a mask.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"segmentation: expected a folder, got {folder}, which does not exist")
    inner = [place for place in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012") if _is_voc(place)]
    if inner:
        folder, first, names = inner[0], 0, VOC_CLASSES
        pairs = {split: _listed(folder, split) for split in ("train", "val")}
    elif (folder / "images").is_dir() and (folder / "annotations").is_dir():
        first, names = 1, tuple(f"class {index}" for index in range(ADE_CLASSES))
        pairs = {split: _paired(folder, split) for split in ("train", "val")}
    else:
        raise ValueError(f"segmentation: expected {LAYOUTS}, got {folder}, which has neither")
    for split, found in pairs.items():
        if not any(pair.image.is_file() and pair.mask.is_file() for pair in found):
            raise ValueError(
                f"segmentation: expected images with masks, got {len(found)} for {split}, none of which has both, such "
                f"as {found[0].image} with {found[0].mask}"
            )
    if (folder / NAMES_FILE).exists():
        names = tuple(read_lines(folder / NAMES_FILE, "segmentation"))
    if len(names) > IGNORED:
        raise ValueError(f"segmentation: expected at most {IGNORED} classes, got {len(names)}")
    return Folder(names, first, pairs)


class Masks(Dataset[Sample]):
    """The images of a folder with the classes of their pixels.

    Args:
        folder: of `read_folder`.
        train: the training images, changed at random by `Draw.seed`; else the others, resized to `Draw.size`.
        smallest, largest: the shorter side that training images are resized to, as parts of that of `Draw.size`,
            before it is cropped or padded.
        rotation: in degrees to either side.
        flip, photometric: whether training mirrors half of the images, and changes their colours.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: a range is empty; at a draw, a file is damaged, a mask is of another size than its image, or has a
            value that is no class.
        OSError: at a draw, a file is missing.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        train: bool,
        smallest: float = 0.5,
        largest: float = 1.5,
        rotation: float = 10.0,
        flip: bool = True,
        photometric: bool = True,
    ) -> None:
        if not 0 < smallest <= largest:
            raise ValueError(f"segmentation: expected 0 < smallest <= largest, got {smallest} and {largest}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"segmentation: expected rotation from 0 to 180, got {rotation}")
        try:
            import torchvision.transforms.v2  # noqa: F401
        except ImportError as error:
            raise needs("segmentation", "torchvision for folders of images", error) from error
        self.names, self.first = folder.names, folder.first
        self.pairs = folder.pairs["train" if train else "val"]
        self.train = train
        self.augmentation = (smallest, largest, rotation, flip, photometric)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(
        self,
        draw: Draw,
    ) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        image, mask = self._read(self.pairs[draw.index])
        both = tv_tensors.Image(image), tv_tensors.Mask(mask)
        transform = augment(draw.size, *self.augmentation) if self.train else v2.Resize(draw.size, antialias=True)
        with seeded(draw.seed):
            image, mask = transform(*both)
        return Sample(image.as_subclass(Tensor).float() / 255, mask.as_subclass(Tensor).long())

    def _read(
        self,
        pair: Pair,
    ) -> tuple[Tensor, Tensor]:  # [3, H, W], [H, W], uint8
        image, values = read_pixels(pair.image, "segmentation", upright=False), read_mask(pair.mask, "segmentation")
        if values.shape != image.shape[1:]:
            raise ValueError(
                f"segmentation: expected a mask of {image.shape[2]} x {image.shape[1]} pixels, as its image, got "
                f"{values.shape[1]} x {values.shape[0]} in {pair.mask}"
            )
        ignored = (values < self.first) | (values == IGNORED)
        classes = torch.where(ignored, IGNORED, values - self.first)
        wrong = classes[~ignored & ((classes < 0) | (classes >= len(self.names)))]
        if len(wrong):
            last = self.first + len(self.names) - 1
            raise ValueError(
                f"segmentation: expected mask values from {self.first} to {last}, or {IGNORED} to ignore, got "
                f"{int(wrong[0]) + self.first} in {pair.mask}"
            )
        return image, classes.to(torch.uint8)


def augment(
    size: tuple[int, int],
    smallest: float,
    largest: float,
    rotation: float,
    flip: bool,
    photometric: bool,
) -> Callable[..., Any]:
    """The training transforms of the MobileViT recipes: a random scale, flip, crop with padding, colours, rotation."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    short = min(size)
    sides = list(range(round(smallest * short), max(round(largest * short), round(smallest * short)) + 1))
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
    steps: list[Any] = [v2.RandomShortestSize(sides, max_size=2 * max(size), antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    if photometric:
        steps.append(v2.RandomPhotometricDistort())
    if rotation:
        steps.append(v2.RandomRotation(rotation, v2.InterpolationMode.BILINEAR, fill=fill))
    return v2.Compose(steps)


def _is_voc(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() and (folder / "SegmentationClass").is_dir()


def _listed(folder: Path, split: str) -> list[Pair]:
    """The files of the names in a list of VOC's."""
    names = read_lines(folder / "ImageSets" / "Segmentation" / f"{split}.txt", "segmentation")
    return [Pair(folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png") for name in names]


def _paired(folder: Path, split: str) -> list[Pair]:
    """The images of an ADE20K folder, and masks of the same names."""
    long = {"train": "training", "val": "validation"}[split]
    name = long if (folder / "images" / long).is_dir() else split
    images = folder / "images" / name
    if not images.is_dir():
        raise FileNotFoundError(
            f"segmentation: expected a folder images/{long} or images/{split}, got none in {folder}"
        )
    found = sorted(file for file in images.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"segmentation: expected images in {images}, got none with a suffix of {', '.join(SUFFIXES)}")
    return [Pair(file, folder / "annotations" / name / f"{file.stem}.png") for file in found]
