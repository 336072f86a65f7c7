"""Folders in ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from affnet_kernels.models.images import load_image
from affnet_kernels.training.data import needs
from affnet_kernels.training.data.files import SUFFIXES, read_pixels, seeded
from affnet_kernels.training.sampling import Draw

TRAIN, VAL = "train", "val"


class Folder(Dataset[tuple[Tensor, int]]):
    """The images below a folder, a class a folder; in training cropped, mirrored and changed at random.

    Images of any mode and size of 8 pixels and more are read, as RGB. What is none raises when it is drawn, and names
    the file.

    Args:
        folder: holds train/ and val/.
        train: which of them, and whether to augment. The others are resized and cropped as `load_image` does.
        crop_area: the smallest part of an image that a random crop shows.
        flip: whether half of the images are mirrored.
        rand_augment: magnitude of RandAugment's two operations, of 30; 0 for none.

    Raises:
        OSError: there is no such folder.
        ValueError: it holds no classes; a class has no images; val/ has a class that train/ lacks, or lacks one.
        ImportError: torchvision or Pillow is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        train: bool,
        *,
        crop_area: float = 0.08,
        flip: bool = True,
        rand_augment: int = 0,
    ) -> None:
        self.train, self.crop_area, self.flip, self.rand_augment = train, crop_area, flip, rand_augment
        transforms()
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"Folder: expected a folder with {TRAIN}/ and {VAL}/, got {folder}, no folder")
        self.classes = class_names(root / TRAIN)
        if not train:
            same_classes(root, self.classes, class_names(root / VAL))
        self.images: list[tuple[Path, int]] = []
        empty = []
        for label, name in enumerate(self.classes):
            paths = images_below(root / (TRAIN if train else VAL) / name)
            self.images += [(path, label) for path in paths]
            if not paths:
                empty.append(name)
        if empty:
            raise ValueError(
                f"Folder: expected images ({', '.join(SUFFIXES)}) in every class, got none in "
                f"{some(empty)} of {root / (TRAIN if train else VAL)}; remove the folder or fill it"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        path, label = self.images[draw.index]
        if not self.train:
            return load_image(path, draw.size[0]), label
        pixels = read_pixels(path, "Folder")
        with seeded(draw.seed):
            return augmentation(draw.size, self.crop_area, self.flip, self.rand_augment)(pixels), label


def class_names(folder: Path) -> list[str]:
    """The names of the classes, in order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder: expected a folder {folder} with a folder a class, got none")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"Folder: expected a folder a class in {folder}, got none")
    return names


def same_classes(root: Path, train: list[str], val: list[str]) -> None:
    """Refuse labels that training does not know, or never meets in the test."""
    for folder, missing in ((TRAIN, set(val) - set(train)), (VAL, set(train) - set(val))):
        if missing:
            raise ValueError(
                f"Folder: expected the same classes in {TRAIN}/ and {VAL}/ of {root}, got none in {folder}/ "
                f"for {some(sorted(missing))}"
            )


def images_below(folder: Path) -> list[Path]:
    """The image files of a class, in order, of folders in it too."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def some(names: list[str]) -> str:
    """The first names, and how many others there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def transforms() -> Any:
    """torchvision's transforms.

    Raises:
        ImportError: torchvision is not installed, or does not fit PyTorch.
    """
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit torch
        raise needs("Folder", "torchvision", error) from error
    return v2


@cache
def augmentation(
    size: tuple[int, int],  # H, W
    crop_area: float,
    flip: bool,
    rand_augment: int,
) -> Callable[[Tensor], Tensor]:  # of [3, h, w] uint8: [3, H, W] float32 in [0, 1]
    """Random crop, flip and RandAugment, from torch's global generator."""
    v2 = transforms()
    steps = [v2.RandomResizedCrop(size, scale=(crop_area, 1.0), antialias=True)]
    steps += [v2.RandomHorizontalFlip()] if flip else []
    steps += [v2.RandAugment(magnitude=rand_augment)] if rand_augment else []
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])


def mixed(
    images: Tensor,  # [B, 3, H, W]
    labels: Tensor,  # [B]
    classes: int,
    mixup: float,
    cutmix: float,
    seed: int,
) -> tuple[Tensor, Tensor]:  # [B, 3, H, W], [B, classes]
    """A batch after MixUp or CutMix with these alphas (0 for never), of which one is chosen at random."""
    v2 = transforms()
    choices = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    choices += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    with seeded(seed):
        choice = int(torch.randint(len(choices), ()))
        return choices[choice](images, labels)
