"""What all formats share: a traced model, and what its exported file computes compared with the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from affnet_kernels.export.exportable import example_images, image_shape, to_exportable

Run = Callable[[Tensor], Any]  # images -> outputs, as an exported file computes them


class Exported(NamedTuple):
    """A file, and what is known about it."""

    path: Path
    operators: tuple[str, ...]  # the types of its nodes, in alphabetical order
    error: float | None  # its outputs' largest absolute difference from the model's; None where it cannot run here


def trace(
    caller: str,
    model: nn.Module,
    size: int | Sequence[int],
    dynamic_batch: bool,
) -> ExportedProgram:
    """The exportable form of a model as a program of one input, the images."""
    shape = image_shape(caller, size)
    exportable = to_exportable(model, size=size)
    batch = 2 if dynamic_batch else 1  # torch.export takes an example's 1 for a constant
    shapes = ({0: Dim("batch", min=1)},) if dynamic_batch else None
    with torch.no_grad():
        return torch.export.export(exportable, (example_images(model, (batch, *shape)),), dynamic_shapes=shapes)


def largest_error(
    run: Run,
    model: nn.Module,
    size: int | Sequence[int],
    batches: Sequence[int],
) -> float:
    """The largest absolute difference between outputs of an exported file and of the model in eval mode."""
    errors = [torch.zeros((), dtype=torch.float64)]
    for batch in batches:
        images = example_images(model, (batch, *image_shape("largest_error", size)))
        with torch.no_grad(), evaluating(model):
            expected = tree_leaves(model(images))
        for got, want in zip(tree_leaves(run(images)), expected, strict=True):
            errors.append((torch.as_tensor(got).double() - want.cpu().double()).abs().max())
    return torch.stack(errors).max().item()  # NaN if there is one


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards every module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
