"""The tiny task with a small AFFNet, which has every kind of layer; for tests of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels.models import AFFNet
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.tasks import TASKS, Loss
from tests import tiny_task

TASKS["small"] = "tests.small_task"
RECIPE = tiny_task.RECIPE.replace(task="small", size=64, limit=20, batch=6, epochs=1, rate=1e-3)


class Small(tiny_task.Tiny):
    """Options: `double`, whether to compute in float64; `weighted`, whether the loss is, as a detector's;
    `channels_last`, whether the network's parameters are in that format, as it is fastest in.
    """

    def model(self) -> nn.Module:
        model = AFFNet((8, 8, 16, 16, 16), (1, 1, 1, 1, 1), 2, num_classes=len(self.classes))
        for name, parameter in model.named_parameters():
            if ".filter." in name:  # so that the mask matters
                nn.init.normal_(parameter, std=2**-0.5)
        if self.recipe.options.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        return model.double() if self.recipe.options.get("double") else model

    def loss(self, outputs: Tensor, targets: Tensor) -> Loss:
        if self.recipe.options.get("weighted"):
            return super().loss(outputs, targets)
        return Loss(F.cross_entropy(outputs, targets, reduction="sum"), torch.tensor(len(targets)), {})


def build(recipe: Recipe) -> Any:
    return Small(recipe)
