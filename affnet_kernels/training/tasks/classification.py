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
from affnet_kernels.training.data import digits, needs
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.tasks import Loss, Task


def build(recipe: Recipe) -> Task:
    """The task on the recipe's data.

    Raises:
        ValueError: there are no such data, or they are not as expected.
    """
    if recipe.data == "digits":
        return Classification(recipe, digits.Digits(train=True), digits.Digits(train=False), digits.CLASSES)
    raise ValueError(f"classification: expected data to be digits, got {recipe.data!r}")


class Classification(Task):
    """Cross-entropy with label smoothing; top-1 and top-5 accuracy in per cent."""

    metric = "top1"

    def __init__(self, recipe: Recipe, train: Dataset[Any], test: Dataset[Any], classes: list[str]) -> None:
        self.recipe, self.train, self.test, self.classes = recipe, train, test, classes

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
        """Samples are an image [3, H, W] and its label."""
        return self.train

    def test_data(self) -> Dataset[Any]:
        """As `train_data`."""
        return self.test

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and labels [B]."""
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def loss(
        self,
        outputs: Tensor,  # [B, classes]
        targets: Tensor,  # [B]
    ) -> Loss:
        """Summed over the images."""
        total = F.cross_entropy(outputs, targets, label_smoothing=self.recipe.label_smoothing, reduction="sum")
        right = (outputs.argmax(1) == targets).sum()
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
