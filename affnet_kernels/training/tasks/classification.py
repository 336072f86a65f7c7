"""Classification: which class an image is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from affnet_kernels.models import create_model
from affnet_kernels.training.data import digits, folders, needs, photos
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import Loss, Task

# What `[options]` may hold for a folder, and for photos; the values are the defaults.
FOLDER_OPTIONS = {"crop_area": 0.08, "flip": True, "rand_augment": 0, "mixup": 0.0, "cutmix": 0.0}
PHOTO_OPTIONS = {"train_images": 2400, "test_images": 480}


def build(recipe: Recipe) -> Task:
    """The task on the recipe's data.

    Raises:
        ValueError: an option is unknown, or the data are not as expected.
        OSError: the folder cannot be read.
        ImportError: a package is missing.
    """
    if recipe.data == "digits":
        options(recipe, {})
        return Classification(recipe, digits.Digits(train=True), digits.Digits(train=False), digits.CLASSES)
    if recipe.data == "photos":
        counts = options(recipe, PHOTO_OPTIONS)
        train = photos.Photos(counts["train_images"], train=True)
        return Classification(recipe, train, photos.Photos(counts["test_images"], train=False), train.classes)
    chosen = options(recipe, FOLDER_OPTIONS)
    mixing = chosen.pop("mixup"), chosen.pop("cutmix")
    folder = folders.Folder(recipe.data, train=True, **chosen)
    test = folders.Folder(recipe.data, train=False)
    return Classification(recipe, Seeded(folder) if any(mixing) else folder, test, folder.classes, mixing)


def options(recipe: Recipe, defaults: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options over their defaults.

    Raises:
        ValueError: one is unknown, or of another type.
    """
    for name, value in recipe.options.items():
        kind = type(defaults.get(name))
        if name not in defaults or not (type(value) is kind or (kind is float and type(value) is int)):
            raise ValueError(
                f"classification: expected options of {defaults} for data {recipe.data}, got {name} = {value!r}"
            )
        if value < 0:
            raise ValueError(f"classification: expected {name} >= 0, got {value!r}")
    return defaults | recipe.options


class Seeded(Dataset[tuple[Tensor, int, int]]):
    """A data set whose samples carry their draw's seed, for what mixes them."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        return (*self.dataset[draw], draw.seed)


class Classification(Task):
    """Cross-entropy with label smoothing; top-1 and top-5 accuracy in per cent.

    Args:
        recipe: its network's options and label smoothing count.
        train, test: samples are an image [3, H, W], its label and, for what mixes them, a seed.
        classes: their names.
        mixing: alphas of MixUp and CutMix, 0 for never.
    """

    metric = "top1"

    def __init__(
        self,
        recipe: Recipe,
        train: Dataset[Any],
        test: Dataset[Any],
        classes: list[str],
        mixing: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.recipe, self.train, self.test, self.classes, self.mixing = recipe, train, test, classes, mixing

    def model(self) -> nn.Module:
        """The recipe's network with an output a class."""
        recipe = self.recipe
        return create_model(
            recipe.model,
            num_classes=len(self.classes),
            mixer=recipe.mixer,
            activation=recipe.activation,
            norm=recipe.norm,
            drop_rate=recipe.drop_rate,
            drop_path_rate=recipe.drop_path_rate,
            img_size=recipe.size,
        )

    def train_data(self) -> Dataset[Any]:
        """Samples are as in the class's `train`."""
        return self.train

    def test_data(self) -> Dataset[Any]:
        """Samples are an image [3, H, W] and its label."""
        return self.test

    def collate(self, samples: list[Any]) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and labels [B], or, where images are mixed, the classes' shares [B, classes]."""
        images, labels, *seeds = zip(*samples, strict=True)
        batch, targets = torch.stack(images), torch.tensor(labels)
        if seeds:
            return folders.mixed(batch, targets, len(self.classes), *self.mixing, seed=seeds[0][0])
        return batch, targets

    def loss(
        self,
        outputs: Tensor,  # [B, classes]
        targets: Tensor,  # [B], or [B, classes]
    ) -> Loss:
        """Summed over the images. Where images are mixed, the larger share is the right class."""
        total = F.cross_entropy(outputs, targets, label_smoothing=self.recipe.label_smoothing, reduction="sum")
        right = (outputs.argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1))).sum()
        return Loss(total, torch.tensor(len(targets), device=total.device), {"top1": 100 * right})

    def evaluator(self) -> Accuracy:
        """Of the test data."""
        return Accuracy(len(self.classes))

    def preview(self, model: nn.Module, path: Path) -> None:
        """No picture."""


class Accuracy:
    """The part of images, in per cent, whose class is the most probable one, and among the five most probable."""

    def __init__(self, classes: int) -> None:
        try:
            from torchmetrics.classification import MulticlassAccuracy
        except ImportError as error:
            raise needs("Accuracy", "torchmetrics", error) from error
        self.metrics = {
            f"top{k}": MulticlassAccuracy(classes, top_k=k, average="micro", distributed_available_fn=_alone)
            for k in (1, 5)
            if k <= classes
        }

    def update(
        self,
        outputs: Tensor,  # [B, classes]
        targets: Tensor,  # [B]
    ) -> None:
        """Take in a batch."""
        for metric in self.metrics.values():
            metric.to(outputs.device).update(outputs, targets)

    def compute(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """Per cent by name."""
        results = {}
        for name, metric in self.metrics.items():
            states = [state.cpu() for state in gather(metric.cpu())]
            first, *others = states
            for other in others:
                first.merge_state(other)
            results[name] = 100 * float(first.compute())
        return results


def _alone() -> bool:
    """Whether torchmetrics should gather by itself; a function with a name, for the pickled metric."""
    return False
