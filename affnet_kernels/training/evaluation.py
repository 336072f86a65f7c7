"""A network's metrics on a task's test data."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from affnet_kernels.training.processes import Processes
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.sampling import Batch, Readable, held_out_batches, loader
from affnet_kernels.training.tasks import Task

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def evaluate(
    task: Task, recipe: Recipe, model: nn.Module, processes: Processes | None = None, *, workers: int = 0
) -> tuple[dict[str, float], list[str]]:
    """A network's metrics on the test data of a task, and a sentence for each sample that could not be read.

    Args:
        task: of the recipe.
        recipe: its size, batch and amp count.
        model: on the device of the processes; it is left in the mode that it had.
        processes: which share the data; None for this process alone, on the CPU.
        workers: processes that load data, 0 for this one itself.

    Returns:
        The same in every process.
    """
    processes = processes or Processes()
    data = Readable(task.test_data(), recipe.limit, substitute=False)
    batch_size = max(1, recipe.batch // recipe.accumulate // processes.world_size)
    batches = held_out_batches(len(data), recipe.size, batch_size, processes.rank, processes.world_size)
    dtype = next(model.parameters()).dtype
    evaluator, training = task.evaluator(), model.training
    skipped: list[str] = []
    model.eval()
    for batch in loader(data, batches, task.collate, workers=workers, device=processes.device):
        if isinstance(batch, Batch):
            images, targets = batch.images.to(processes.device, dtype), moved(batch.targets, processes.device)
            with autocast(recipe, processes.device):
                outputs = model(images)
            evaluator.update(in_full(outputs), targets)
        skipped += batch.skipped if isinstance(batch, Batch) else batch
    model.train(training)
    return evaluator.compute(processes.gather), [text for part in processes.gather(skipped) for text in part]


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which the recipe's forward passes run."""
    return nullcontext() if recipe.amp == "off" else torch.autocast(device.type, AMP_TYPES[recipe.amp])


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, and those in dicts, tuples and lists, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return mapped(value, lambda part: moved(part, device))


def in_full(value: Any) -> Any:
    """Tensors, and those in dicts, tuples and lists, without the 16-bit types of autocast."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in AMP_TYPES.values() else value
    return mapped(value, in_full)


def mapped(value: Any, function: Any) -> Any:
    """A dict, tuple or list with a function's results in place of its parts; anything else as it is."""
    if isinstance(value, dict):
        return {key: function(part) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [function(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [function(part) for part in value] if isinstance(value, list) else value
