"""A task for tests of the training engine: coloured noise, and a network without BatchNorm that learns its colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import TASKS, Loss, Task
from affnet_kernels.training.tasks.classification import Accuracy

CLASSES = ["red", "green", "blue"]
TASKS["tiny"] = "tests.tiny_task"
RECIPE = Recipe(task="tiny", data="noise", size=8, epochs=3, batch=8, rate=0.01, ema=0.5, clip=1.0, label_smoothing=0.1)


class Noise(Dataset[tuple[Tensor, int]]):
    """40 images; the files of the `bad` ones cannot be read."""

    def __init__(self, bad: list[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 40

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        if draw.index in self.bad:
            raise ValueError(f"Noise: expected a complete image, got noise{draw.index}.jpg")
        image = torch.rand(3, *draw.size, generator=torch.Generator().manual_seed(draw.seed + draw.index))
        image[draw.index % 3] += 0.5
        return image, draw.index % 3


class Tiny(Task):
    """Classification of the noise."""

    metric = "top1"
    classes = CLASSES

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.bad = [int(index) for index in str(recipe.options.get("bad", "")).split()]

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(4, 3)
        )

    def train_data(self) -> Noise:
        return Noise(self.bad)

    def test_data(self) -> Noise:
        return Noise(self.bad)

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> Loss:
        """As a detector's: the weight is not the number of images."""
        weights = 1.0 + targets
        total = (F.cross_entropy(outputs, targets, reduction="none") * weights).sum()
        return Loss(total, weights.sum(), {"part": total / 2})

    def evaluator(self) -> Accuracy:
        return Accuracy(len(CLASSES))

    def preview(self, model: nn.Module, path: Path) -> None:
        path.write_bytes(b"picture")


def build(recipe: Recipe) -> Any:
    return Tiny(recipe)
