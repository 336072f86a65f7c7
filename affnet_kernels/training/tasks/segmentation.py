"""Segmentation: DeepLabv3 on an AFFNet, on generated scenes or on folders of images with masks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from affnet_kernels.models import DeepLabv3, create_model
from affnet_kernels.models.dense_checkpoints import load_weights
from affnet_kernels.models.maps import draw_maps
from affnet_kernels.training.data import needs
from affnet_kernels.training.data.scenes import Scenes
from affnet_kernels.training.data.voc import IGNORED, Folder, Masks, read_folder
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import Loss, Task

SCENES = "scenes"
PREVIEWED = 6  # images of the picture at the end


class Options(NamedTuple):
    """What `Recipe.options` may hold."""

    output_stride: int = 16  # as in `AFFNet`
    aspp_channels: int = 256  # as in `DeepLabv3`
    head_activation: str = "relu"  # as `activation` in `DeepLabv3`
    train_scenes: int = 2000  # an epoch, of generated scenes
    test_scenes: int = 300
    digits: int = 10  # which scenes show
    smallest: float = 0.5  # these five as in `Masks`, for folders
    largest: float = 1.5
    rotation: float = 10.0
    flip: bool = True
    photometric: bool = True


class Segmentation(Task):
    """The segmentation task of a recipe.

    Its data is "scenes", or a folder as in `read_folder`.

    Raises:
        ValueError: an option is unknown or not as in `Options`; a step's part has one image; as in `read_folder`.
        OSError, ImportError: as in `read_folder`, `Scenes` and `Masks`.
    """

    metric = "miou"

    def __init__(
        self,
        recipe: Recipe,
    ) -> None:
        self.recipe = recipe
        self.options = _options(recipe.options)
        if recipe.batch // recipe.accumulate < 2:
            raise ValueError(
                "segmentation: expected at least 2 images in each part of a step, where a BatchNorm takes statistics "
                f"over one value per image, got batch {recipe.batch} in {recipe.accumulate} parts"
            )
        self.folder: Folder | None = None if recipe.data == SCENES else read_folder(recipe.data)
        self.train, self.test = self._data(True), self._data(False)
        names = self.train.names
        self.classes = [*names] if self.folder else ["background", *names]

    def model(self) -> DeepLabv3:
        """The network with its initial weights."""
        recipe, own = self.recipe, self.options
        options: dict[str, Any] = {name: getattr(recipe, name) for name in ("mixer", "activation", "norm")}
        options |= {"drop_path_rate": recipe.drop_path_rate, "output_stride": own.output_stride}
        backbone = create_model(recipe.model, img_size=recipe.size, **options)
        channels, activation = own.aspp_channels, own.head_activation
        return DeepLabv3(backbone, len(self.classes), aspp_channels=channels, activation=activation)

    def load_weights(self, model: nn.Module, path: str) -> None:
        """As `dense_checkpoints.load_weights`."""
        load_weights(model, path)

    def train_data(self) -> Dataset[Any]:
        """The images for training, changed at random."""
        return self.train

    def test_data(self) -> Dataset[Any]:
        """The images for evaluation, only resized."""
        return self.test

    def collate(
        self,
        samples: list[Any],  # Scene or Sample
    ) -> tuple[Tensor, Tensor]:  # [B, 3, H, W], [B, H, W]
        """Images and masks of one size."""
        return torch.stack([sample.image for sample in samples]), torch.stack([sample.mask for sample in samples])

    def loss(
        self,
        outputs: Tensor,  # [B, classes, H, W], logits
        targets: Tensor,  # [B, H, W], int64
    ) -> Loss:
        """Cross-entropy over the pixels that are not ignored."""
        total = F.cross_entropy(
            outputs.to(torch.promote_types(outputs.dtype, torch.float32)),
            targets,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.recipe.label_smoothing,
        )
        return Loss(total, (targets != IGNORED).sum(), {})

    def evaluator(self) -> MeanIoU:
        """Of the test data."""
        return MeanIoU(len(self.classes))

    @torch.no_grad()
    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw the first test images, their masks, and what the network makes of them."""
        size = (self.recipe.size, self.recipe.size)
        samples = []
        for index in range(len(self.test)):
            try:
                samples.append(self.test[Draw(index, 0, size)])
            except (ValueError, OSError):  # which the evaluation has named
                continue
            if len(samples) == PREVIEWED:
                break
        if not samples:
            return
        images, masks = self.collate(samples)
        like = next(model.parameters())
        found = torch.cat([model(image[None].to(like)).argmax(1).cpu() for image in images])
        draw_maps(images, masks, found, self.classes, path)

    def _data(self, train: bool) -> Any:
        options = self.options
        if self.folder is None:
            count = options.train_scenes if train else options.test_scenes
            return Scenes(count, train=train, classes=options.digits)
        return Masks(
            self.folder,
            train=train,
            smallest=options.smallest,
            largest=options.largest,
            rotation=options.rotation,
            flip=options.flip,
            photometric=options.photometric,
        )


class MeanIoU:
    """The mean IoU over the classes that occur, and the share of right pixels, by torchmetrics; in percent."""

    def __init__(self, classes: int) -> None:
        try:
            from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
        except ImportError as error:
            raise needs("segmentation", "torchmetrics", error) from error
        # The engine gathers; torchmetrics would do it once more.
        common: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False, "sync_on_compute": False}

        def build() -> dict[str, Any]:
            return {
                "miou": MulticlassJaccardIndex(classes, average="macro", **common),
                "pixel_accuracy": MulticlassAccuracy(classes, average="micro", **common),
            }

        self.build, self.metrics = build, build()

    def update(
        self,
        outputs: Tensor,  # [B, classes, H, W], logits
        targets: Tensor,  # [B, H, W], int64
    ) -> None:
        """Take in a batch."""
        found = outputs.argmax(1)
        for metric in self.metrics.values():
            metric.to(found.device).update(found, targets)

    def compute(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """Per cent by name."""
        states = {name: {key: t.cpu() for key, t in m.metric_state.items()} for name, m in self.metrics.items()}
        whole = self.build()
        for part in gather(states):
            for name, metric in whole.items():
                metric.merge_state(part[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that `whole` was never updated: it was merged
            return {name: 100 * float(metric.compute()) for name, metric in whole.items()}


def build(recipe: Recipe) -> Segmentation:
    """The task of a recipe."""
    return Segmentation(recipe)


def _options(given: dict[str, Any]) -> Options:
    """The options, of the types of their defaults; a whole number will do for another."""
    if unknown := [name for name in given if name not in Options._fields]:
        raise ValueError(f"segmentation: expected options of {list(Options._fields)}, got {', '.join(unknown)}")
    values = {}
    for name, value in given.items():
        kind = type(Options._field_defaults[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"segmentation: expected option {name} to be of type {kind.__name__}, got {value!r}")
        values[name] = value
    return Options(**values)
