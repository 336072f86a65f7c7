"""What a task gives to the training engine, and the tasks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from affnet_kernels.models.dense_checkpoints import load_weights
from affnet_kernels.training.recipe import Recipe

# The module of each task; its `build(recipe)` returns the Task.
TASKS = {
    "classification": "affnet_kernels.training.tasks.classification",
    "detection": "affnet_kernels.training.tasks.detection",
    "segmentation": "affnet_kernels.training.tasks.segmentation",
}


class Loss(NamedTuple):
    """A batch's loss as sums, which add up over the parts of a step and over processes.

    The engine divides by the weight summed over all of them, so that N processes give one process's gradient.
    """

    total: Tensor  # [], the sum over what it is normalised by; its gradient is taken
    weight: Tensor  # [], the normaliser: images, valid pixels, positive anchors
    parts: dict[str, Tensor]  # [] each, sums too, for the logs; they are divided by the weight as well


class Evaluator(Protocol):
    """The metrics of one pass over the test data."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch: `outputs` of the network in float32, `targets` as `collate` makes them, on its device."""

    def compute(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """The metrics by name, over all processes: `gather(x)` is the list of every process's x, a picklable object."""
        ...


class Task(Protocol):
    """A network, its data, loss and metrics."""

    metric: str  # by which the best checkpoint is chosen, larger is better: "top1", "map50", "miou"
    classes: list[str]  # their names, as they are saved beside the weights

    def model(self) -> nn.Module:
        """The network with its initial weights, drawn from the global generator, which the engine has seeded."""
        ...

    def load_weights(self, model: nn.Module, path: str) -> None:
        """Start from the weights of a checkpoint: all that fit, with any number of classes."""
        load_weights(model, path)

    def train_data(self) -> Dataset[Any]:
        """With `__len__`, and `__getitem__(Draw)` as a pure function: no use of a global generator's state.

        A sample that cannot be read raises ValueError or OSError, which name the file: it is counted, and the next
        stands in.
        """
        ...

    def test_data(self) -> Dataset[Any]:
        """As `train_data`, where the draw's seed means nothing; what cannot be read is counted and left out."""
        ...

    def collate(self, samples: list[Any]) -> tuple[Tensor, Any]:
        """A batch of samples: images [B, 3, H, W] float32 in [0, 1], and targets (tensors in dicts, tuples, lists)."""
        ...

    def loss(self, outputs: Any, targets: Any) -> Loss:
        """Of `outputs = model(images)`, under autocast where the recipe says so."""
        ...

    def evaluator(self) -> Evaluator:
        """A new one for each pass over the test data."""
        ...

    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw predictions of the trained network (in eval mode) into `path`, a PNG. Nothing unless a task does."""


def task_of(recipe: Recipe) -> Task:
    """The task that a recipe names.

    Raises:
        ValueError: there is no such task, or its data or options are not as it expects.
        OSError, ImportError: its data cannot be read.
    """
    if recipe.task not in TASKS:
        raise ValueError(f"task_of: expected task to be one of {list(TASKS)}, got {recipe.task!r}")
    return importlib.import_module(TASKS[recipe.task]).build(recipe)
