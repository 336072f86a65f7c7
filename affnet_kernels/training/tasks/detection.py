"""Object detection: SSDLite on generated scenes, or on a folder of COCO's form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from affnet_kernels.models import SSDLite, create_model
from affnet_kernels.models.dense_checkpoints import load_weights
from affnet_kernels.models.drawings import as_picture, boxes_to_draw, draw_boxes, mosaic
from affnet_kernels.training.data.coco import CocoFolder
from affnet_kernels.training.data.objects import Objects, Sample
from affnet_kernels.training.data.scenes import Scenes
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import Loss, Task
from affnet_kernels.training.tasks.coco_map import MeanAveragePrecision
from affnet_kernels.training.tasks.multibox import multibox_loss

SCENES = "scenes"
PREVIEWED = 8  # images of the picture at the end
PREVIEW_SIDE = 320
PREVIEW_SCORE = 0.3


class Options(NamedTuple):
    """What `Recipe.options` may hold."""

    head_activation: str = "relu"  # as `activation` in `SSDLite`
    train_scenes: int = 2000  # an epoch, of generated scenes
    test_scenes: int = 500
    digits: int = 10  # which scenes show


class Targets(NamedTuple):
    """What the images of a batch show."""

    boxes: list[Tensor]  # of each image [n, 4]: x1, y1, x2, y2 as parts of W and H
    labels: list[Tensor]  # of each image [n], from 1
    size: tuple[int, int]  # H, W of the images
    numbers: list[int]  # of the images in their data set
    scales: Tensor  # [B, 4]: W, H, W, H of the images in their files
    objects: list[Objects]  # of each image, what evaluation compares with


class SceneSamples(Dataset[Sample]):
    """Scenes as detection wants them."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes, self.names = scenes, list(scenes.names)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, draw: Draw) -> Sample:
        image, boxes, labels, _ = self.scenes[draw]
        height, width = draw.size
        parts = boxes / torch.tensor([width, height, width, height])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        objects = Objects(boxes, labels, torch.zeros_like(labels, dtype=torch.bool), areas)
        return Sample(image, parts, labels, draw.index, draw.size, objects)


class Detection(Task):
    """The detection task of a recipe.

    Its data is "scenes", or a folder as in `CocoFolder`.

    Raises:
        ValueError: an option is unknown or not as in `Options`; the recipe smooths labels or drops features out, which
            SSD does not; as in `Scenes` and `CocoFolder`.
        OSError, ImportError: as in `Scenes` and `CocoFolder`.
    """

    metric = "map50"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.options = recipe, _options(recipe.options)
        for name in ("label_smoothing", "drop_rate"):
            if getattr(recipe, name):
                raise ValueError(f"detection: expected {name} 0, which SSD does not have, got {getattr(recipe, name)}")
        self.test = self._data(train=False)
        self.classes = ["background", *self.test.names]

    def _data(self, train: bool) -> SceneSamples | CocoFolder:
        if self.recipe.data != SCENES:
            return CocoFolder(self.recipe.data, train=train)
        count = self.options.train_scenes if train else self.options.test_scenes
        return SceneSamples(Scenes(count, train=train, classes=self.options.digits))

    def model(self) -> SSDLite:
        """The network with its initial weights."""
        recipe = self.recipe
        options: dict[str, Any] = {name: getattr(recipe, name) for name in ("mixer", "activation", "norm")}
        backbone = create_model(recipe.model, img_size=recipe.size, drop_path_rate=recipe.drop_path_rate, **options)
        return SSDLite(backbone, len(self.classes), activation=self.options.head_activation)

    def load_weights(self, model: nn.Module, path: str) -> None:
        """As `dense_checkpoints.load_weights`."""
        load_weights(model, path)

    def train_data(self) -> Dataset[Any]:
        """The images for training, changed at random.

        Raises:
            ValueError: they have other categories than those for evaluation; as in `CocoFolder`.
            OSError, ImportError: as in `CocoFolder`.
        """
        data = self._data(train=True)
        if data.names != self.test.names:
            raise ValueError(
                f"detection: expected the same categories for training and evaluation in {self.recipe.data}, got "
                f"{', '.join(data.names)} and {', '.join(self.test.names)}"
            )
        return data

    def test_data(self) -> Dataset[Any]:
        """The images for evaluation, only resized."""
        return self.test

    def collate(
        self,
        samples: list[Sample],
    ) -> tuple[Tensor, Targets]:  # [B, 3, H, W]
        """A batch of samples of one size."""
        images = torch.stack([sample.image for sample in samples])
        height, width = images.shape[2:]
        scales = torch.tensor([(*sample.size[::-1], *sample.size[::-1]) for sample in samples])
        return images, Targets(
            [sample.boxes for sample in samples],
            [sample.labels for sample in samples],
            (height, width),
            [sample.number for sample in samples],
            scales,
            [sample.objects for sample in samples],
        )

    def loss(
        self,
        outputs: tuple[Tensor, Tensor],  # [B, A, num_classes], [B, A, 4]
        targets: Targets,
    ) -> Loss:
        """SSD's multibox loss."""
        scores, offsets = outputs
        anchors = SSDLite.anchors(targets.size, offsets.device)
        return multibox_loss(scores, offsets, anchors, targets.boxes, targets.labels)

    def evaluator(self) -> Evaluator:
        """COCO's mean average precision."""
        return Evaluator()

    @torch.no_grad()
    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw what the network finds in the first images for evaluation."""
        like = next(model.parameters())
        pictures = []
        for index in range(min(PREVIEWED, len(self.test))):
            try:
                images, targets = self.collate([self.test[Draw(index, 0, (self.recipe.size, self.recipe.size))]])
            except (OSError, ValueError):  # evaluation has named it
                continue
            scores, offsets = model(images.to(like))
            (found,) = SSDLite.detections(scores, offsets, targets.size, min_score=PREVIEW_SCORE)
            picture = as_picture(images[0]).resize((PREVIEW_SIDE, PREVIEW_SIDE))  # before letters are drawn
            pictures.append(draw_boxes(picture, boxes_to_draw(found, picture.size, self.classes)))
        if pictures:
            mosaic(pictures, PREVIEW_SIDE).save(path)


class Evaluator:
    """COCO's metrics over the test data."""

    def __init__(self) -> None:
        self.precision = MeanAveragePrecision()

    def update(
        self,
        outputs: tuple[Tensor, Tensor],  # [B, A, num_classes], [B, A, 4]
        targets: Targets,
    ) -> None:
        """Take in a batch."""
        found = SSDLite.detections(*outputs, targets.size)
        for number, scale, image, objects in zip(targets.numbers, targets.scales, found, targets.objects, strict=True):
            self.precision.update(number, image._replace(boxes=image.boxes * scale), objects)

    def compute(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """As in `MeanAveragePrecision`."""
        return self.precision.compute(gather)


def build(recipe: Recipe) -> Detection:
    """The task of a recipe, as in `Detection`."""
    return Detection(recipe)


def _options(given: dict[str, Any]) -> Options:
    for name, value in given.items():
        if name not in Options._fields:
            raise ValueError(f"detection: expected options among {list(Options._fields)}, got {name}")
        expected = type(Options._field_defaults[name])
        if type(value) is not expected:
            raise ValueError(f"detection: expected option {name} to be of type {expected.__name__}, got {value!r}")
    return Options(**given)
