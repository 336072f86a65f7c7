"""Detection data in folders as COCO lays them out, with torchvision's transforms for training."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from affnet_kernels.training.data.files import read_pixels, seeded
from affnet_kernels.training.data.objects import Objects, Sample

if TYPE_CHECKING:
    from affnet_kernels.training.sampling import Draw

CALLER = "CocoFolder"
SHOWN = 3  # entries that are left out and named, of all that are counted


class CocoFolder(Dataset[Sample]):
    """The images and boxes of a folder with `annotations/instances_{train,val}*.json` and the images.

    The images are in `train2017` or `images/train2017`, if that is the rest of the file's name, or else in
    `images/train`, `train` or `images`. Labels count the categories from 1 in the order of
    their ids. Boxes are cut off at the image's edges. Crowds are not trained on; in evaluation they are as in COCO.

    What cannot be used is left out, counted and named in a warning: images whose files are missing, boxes of images
    that are not listed, and boxes without area inside the image. Images without boxes stay: there is nothing in them.

    Args:
        root: the folder.
        train: the training images, changed at random by `Draw.seed`; else the others, resized to `Draw.size`.

    Raises:
        OSError: there is no such folder, or no file of annotations in it.
        ValueError: the file is not such a one, a category is none of its own, or no image is left; at a draw, an image
            file is damaged, or of another size than the annotations say.
        ImportError: torchvision, which training needs, is not installed.
    """

    def __init__(self, root: str | Path, *, train: bool) -> None:
        self.train = train
        if train:
            try:
                import torchvision.transforms.v2  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    f"{CALLER}: training needs torchvision, got {error}; pip install torchvision"
                ) from error
        split = "train" if train else "val"
        self.annotations = _annotation_file(Path(root), split)
        content = _content(self.annotations)
        categories = _categories(content, self.annotations)
        self.names = [name for _, name in categories]
        """Of the labels from 1."""
        self.skipped: list[str] = []
        """A sentence for each entry that is left out."""
        folder = _image_folder(Path(root), self.annotations, split)
        listed = self._images(content, folder)
        self._read_boxes(content, listed, {number: label for label, (number, _) in enumerate(categories, start=1)})
        if self.skipped:
            shown = "; ".join(self.skipped[:SHOWN])
            more = "; ..." if len(self.skipped) > SHOWN else ""
            warnings.warn(
                f"{CALLER}: left out {len(self.skipped)} entries of {self.annotations}: {shown}{more}", stacklevel=2
            )

    def _images(self, content: dict[str, Any], folder: Path) -> dict[int, int | None]:
        """Note the images whose files are there; the row of each listed image by its id, None for a missing file."""
        there = {file.name for file in folder.iterdir()}
        self.files: list[Path] = []
        sizes: list[tuple[int, int]] = []
        listed: dict[int, int | None] = {}
        for number, image in enumerate(content["images"]):
            try:
                key, name, size = image["id"], image["file_name"], (int(image["height"]), int(image["width"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{CALLER}: expected id, file_name, height and width of each image, got image {number} without "
                    f"{error} in {self.annotations}"
                ) from error
            if key in listed:
                raise ValueError(f"{CALLER}: expected an id for each image, got {key} twice in {self.annotations}")
            if min(size) < 1:
                raise ValueError(
                    f"{CALLER}: expected images of a positive size, got {size[1]} x {size[0]} of {name} in "
                    f"{self.annotations}"
                )
            if name in there or (folder / name).is_file():
                listed[key] = len(self.files)
                self.files.append(folder / name)
                sizes.append(size)
            else:
                listed[key] = None
                self.skipped.append(f"{folder / name} does not exist")
        if not self.files:
            missing = f"; the first is {folder / content['images'][0]['file_name']}" if content["images"] else ""
            raise ValueError(
                f"{CALLER}: expected images, got {len(listed)} in {self.annotations}, none of which is in {folder}"
                f"{missing}"
            )
        self.sizes = torch.tensor(sizes)  # H, W
        return listed

    def _read_boxes(self, content: dict[str, Any], listed: dict[int, int | None], labels: dict[int, int]) -> None:
        """Note the boxes, those of an image one after another."""
        rows: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        facts: list[tuple[int, bool, float]] = []
        for annotation in content["annotations"]:
            name = f"annotation {annotation.get('id', len(rows))}"
            box, area = _box(annotation, name, self.annotations)
            if annotation.get("category_id") not in labels:
                raise ValueError(
                    f"{CALLER}: expected a category that {self.annotations} lists, got "
                    f"{annotation.get('category_id')!r} of {name}"
                )
            if annotation.get("image_id") not in listed:
                self.skipped.append(f"{name} is of image {annotation.get('image_id')!r}, which is not listed")
                continue
            row = listed[annotation["image_id"]]
            if row is None:
                continue  # its image is named already
            height, width = self.sizes[row].tolist()
            inside = _cut(box, height, width)
            if inside is None:
                self.skipped.append(f"{name} has no area inside its image of {width} x {height}: {list(box)}")
                continue
            rows.append(row)
            boxes.append(inside)
            facts.append((labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0)), area))
        # Tensors of all boxes, and not lists of objects, so that the loader's processes share their memory.
        order = torch.tensor(rows, dtype=torch.int64).argsort(stable=True)
        self.boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)[order]
        self.labels = torch.tensor([label for label, _, _ in facts], dtype=torch.int64)[order]
        self.crowds = torch.tensor([crowd for _, crowd, _ in facts], dtype=torch.bool)[order]
        self.areas = torch.tensor([area for _, _, area in facts], dtype=torch.float32)[order]
        counts = torch.bincount(torch.tensor(rows, dtype=torch.int64), minlength=len(self.files))
        self.ends = counts.cumsum(0)

    def __len__(self) -> int:
        return len(self.files)

    def objects(self, index: int) -> Objects:
        """What is in an image."""
        mine = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
        return Objects(self.boxes[mine], self.labels[mine], self.crowds[mine], self.areas[mine])

    def __getitem__(self, draw: Draw) -> Sample:
        height, width = self.sizes[draw.index].tolist()
        pixels = read_pixels(self.files[draw.index], CALLER, upright=False)
        if pixels.shape[1:] != (height, width):
            raise ValueError(
                f"{CALLER}: expected an image of {width} x {height} pixels, as annotated, got {pixels.shape[2]} x "
                f"{pixels.shape[1]} in {self.files[draw.index]}"
            )
        objects = self.objects(draw.index)
        boxes, labels = objects.boxes[~objects.crowds], objects.labels[~objects.crowds]
        if self.train:
            with seeded(draw.seed):
                pixels, boxes, labels = augment(pixels, boxes, labels)
        sides = torch.tensor(pixels.shape[:0:-1]).repeat(2)  # W, H, W, H
        return Sample(resized(pixels, draw.size), boxes / sides, labels, draw.index, (height, width), objects)


def augment(
    pixels: Tensor,  # [3, H, W], uint8
    boxes: Tensor,  # [n, 4]: x1, y1, x2, y2 in pixels
    labels: Tensor,  # [n]
) -> tuple[Tensor, Tensor, Tensor]:  # of the part of the image that is left
    """SSD's augmentation, from PyTorch's global generator: colours, a part of the image that shows its boxes, flips."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    height, width = pixels.shape[1:]
    steps: list[Any] = [v2.RandomPhotometricDistort()]
    if len(boxes):  # without any there is no overlap with them to choose a part by
        steps.append(v2.RandomIoUCrop())
    steps += [v2.SanitizeBoundingBoxes(), v2.RandomHorizontalFlip()]
    sample = {
        "image": tv_tensors.Image(pixels),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": labels,
    }
    changed = v2.Compose(steps)(sample)
    return changed["image"].as_subclass(Tensor), changed["boxes"].as_subclass(Tensor), changed["labels"]


def resized(
    pixels: Tensor,  # [3, H, W], uint8
    size: tuple[int, int],
) -> Tensor:  # [3, *size], float32 in [0, 1]
    """An image as the network takes it, of the size and whatever ratio of sides."""
    return F.interpolate(pixels[None].float() / 255, size, mode="bilinear", antialias=True)[0]


def _annotation_file(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"{CALLER}: expected a folder, got {root}, which does not exist")
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if not found:
        raise FileNotFoundError(f"{CALLER}: expected annotations/instances_{split}*.json in {root}, got no such file")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{CALLER}: expected one file instances_{split}*.json in {root / 'annotations'}, got {names}")
    return found[0]


def _image_folder(root: Path, annotations: Path, split: str) -> Path:
    name = annotations.stem.removeprefix("instances_")
    places = [root / name, root / "images" / name, root / "images" / split, root / split, root / "images"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{CALLER}: expected the images in {places[0]} or {places[-1]}, got no such folder")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{CALLER}: expected JSON, got {path}: {error}") from error
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{CALLER}: expected lists of images, annotations and categories, got no {name} in {path}")
    return content


def _categories(content: dict[str, Any], path: Path) -> list[tuple[int, str]]:
    """The categories by id."""
    found = [(category.get("id"), category.get("name")) for category in content["categories"]]
    well_formed = all(isinstance(number, int) and isinstance(name, str) for number, name in found)
    if not found or not well_formed or len({number for number, _ in found}) < len(found):
        raise ValueError(f"{CALLER}: expected categories with an id and a name each, got {found[:SHOWN]} in {path}")
    return sorted(found)


def _box(annotation: dict[str, Any], name: str, path: Path) -> tuple[tuple[float, float, float, float], float]:
    """The x, y, w, h of an annotation, and the area that it states, or its box has."""
    box, area = annotation.get("bbox"), annotation.get("area")
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
        raise ValueError(f"{CALLER}: expected bbox to be x, y, width and height, got {box!r} of {name} in {path}")
    x, y, width, height = map(float, numbers)
    return (x, y, width, height), float(area) if isinstance(area, (int, float)) else width * height


def _cut(box: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float, float, float] | None:
    """The corners of the part of a box x, y, w, h inside an image, if it has an area."""
    x, y, w, h = box
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None
