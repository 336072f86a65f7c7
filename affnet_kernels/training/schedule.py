"""The learning rate over the steps, and which weights decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Plan


def rate_factor(recipe: Recipe, plan: Plan) -> Callable[[int], float]:
    """The learning rate at a step as a part of `recipe.rate`: a linear warm-up, then half a cosine."""
    peak = recipe.rate or 1.0
    low, final = recipe.warmup_rate / peak, recipe.final_rate / peak
    warmup = round(recipe.warmup_epochs * plan.total / recipe.epochs)

    def factor(step: int) -> float:
        if step < warmup:
            return low + (1 - low) * step / warmup
        progress = min(1.0, (step - warmup) / max(1, plan.total - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The optimiser's two groups: biases and the norms' weights, of one dimension, do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
