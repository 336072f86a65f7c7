"""COCO's mean average precision, by pycocotools, of detections that several processes may have made."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch

from affnet_kernels.models import Detections
from affnet_kernels.training.data.objects import Objects

# The numbers that pycocotools sums up, in its order.
METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "mar1", "mar10", "mar100")


class MeanAveragePrecision:
    """Collects detections, and the objects that they are compared with, image by image."""

    def __init__(self) -> None:
        try:
            import pycocotools.cocoeval  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"MeanAveragePrecision: needs pycocotools, got {error}; pip install 'affnet_kernels[train]'"
            ) from error
        self._images: dict[int, tuple[list[list[float]], list[list[float]]]] = {}

    def update(self, image: int, found: Detections, objects: Objects) -> None:
        """Take in an image by its number; what came before under the same number is replaced.

        Args:
            image: its number, the same in every process.
            found: the boxes in the pixels that `objects` has.
            objects: what is to be found.
        """
        columns = found.scores[:, None], found.labels[:, None], found.boxes
        detected = torch.cat([column.double() for column in columns], dim=1)
        facts = objects.crowds[:, None], objects.areas[:, None], objects.labels[:, None], objects.boxes
        there = torch.cat([fact.double() for fact in facts], dim=1)
        self._images[image] = detected.tolist(), there.tolist()

    def compute(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """The metrics of `METRICS` over the images of all processes, in percent; -1 where no object is of such a size.

        Args:
            gather: the list of every process's objects for the own one, as torch.distributed's all_gather_object makes.
        """
        images: dict[int, tuple[list[list[float]], list[list[float]]]] = {}
        for part in gather(self._images):
            images |= part
        truth = [
            _annotation(image, label, box, {"iscrowd": int(crowd), "area": area})
            for image, (_, objects) in images.items()
            for crowd, area, label, *box in objects
        ]
        detected = [
            _annotation(image, label, box, {"iscrowd": 0, "score": score})
            for image, (found, _) in images.items()
            for score, label, *box in found
        ]
        return _evaluation(sorted(images), truth, detected)


def _annotation(image: int, label: float, box: list[float], facts: dict[str, float]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    sides = x2 - x1, y2 - y1
    return {"image_id": image, "category_id": int(label), "bbox": [x1, y1, *sides], "area": sides[0] * sides[1]} | facts


def _evaluation(
    images: list[int], truth: Iterable[dict[str, Any]], detected: Iterable[dict[str, Any]]
) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        for annotations in (truth, detected):
            coco = COCO()
            numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)]
            labels = sorted({annotation["category_id"] for annotation in numbered})
            coco.dataset = {
                "images": [{"id": image} for image in images],
                "categories": [{"id": label} for label in labels],
                "annotations": numbered,
            }
            coco.createIndex()
            sides.append(coco)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: 100 * float(value) if value >= 0 else -1.0
        for name, value in zip(METRICS, evaluation.stats, strict=False)  # of the recalls by size, it has more
    }
