"""N processes train as one does: gradients, curves, averages; by DistributedDataParallel and by FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from affnet_kernels.models import AFFNet
from affnet_kernels.training.processes import Processes
from tests.processes import run_in_processes

BATCH, STEPS, CLASSES, LIMIT = 6, 4, 5, 1.0
BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}


class Curve(NamedTuple):
    """What a few steps of training give."""

    losses: list[float]
    norms: list[float]  # of the gradient before it is clipped
    gradients: dict[str, Tensor]  # of the first step
    average: dict[str, Tensor]
    whole: dict[str, Tensor]


def network(dtype: torch.dtype) -> AFFNet:
    """A small AFFNet with every kind of layer, whose masks matter."""
    torch.manual_seed(0)
    model = AFFNet((8, 8, 16, 16, 16), (1, 1, 1, 1, 1), 2, num_classes=CLASSES).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".filter." in name:
                parameter.normal_(std=2**-0.5)
    return model


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and weights that differ so much that the processes' normalisers do."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, 64, 64, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return images, labels, torch.arange(BATCH)


def trained(
    processes: Processes,
    dtype: torch.dtype,
    weighted: bool,
    parts: int = 1,
    channels_last: bool = False,
) -> Curve:
    """Some steps as the engine takes them: a loss summed over what it is normalised by, which only the sum tells."""
    plain = network(dtype)
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last)
    model = processes.wrap(plain)
    average = processes.average(model, 0.7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        sums = torch.zeros(2, dtype=torch.float64)
        for part in range(parts):
            index, count = part * processes.world_size + processes.rank, parts * processes.world_size
            mine = slice(BATCH * index // count, BATCH * (index + 1) // count)
            images, labels, weights = (tensor[mine] for tensor in batch(step, dtype))
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with processes.last_part(model, part + 1 == parts):
                each = F.cross_entropy(model(images), labels, reduction="none")
                total = (each * weights).sum() if weighted else each.sum()
                total.backward()
            sums += torch.stack(
                (total.detach().double(), (weights.sum() if weighted else len(labels)) * torch.ones(()))
            )
        total_of_all, weight_of_all = processes.sum(sums).tolist()
        for parameter in model.parameters():
            parameter.grad *= processes.world_size / weight_of_all
        if step == 0:
            gradients = whole_gradients(processes.unwrapped(model))
        losses.append(total_of_all / weight_of_all)
        norms.append(float(processes.clip(model, LIMIT)))
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    whole = {key: value.clone() for key, value in processes.whole(average.module).state_dict().items()}
    return Curve(losses, norms, gradients, processes.weights(average.module), whole)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad.clone() for name, grad in named}


def in_parallel(processes: Any, fsdp: bool, *arguments: Any) -> Curve:
    processes.fsdp = fsdp
    return trained(processes, *arguments)


def worst(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest L2 error of a gradient, relative to its own norm, or to 1 % of all gradients' where it is smaller.

    Some gradients are zero but for rounding: those of biases that a BatchNorm takes away.
    """
    least = 0.01 * torch.stack([tensor.norm() for tensor in expected.values()]).norm()
    assert got.keys() == expected.keys()
    return max(float((got[name] - e).norm() / max(e.norm(), least)) for name, e in expected.items())


CASES = [
    pytest.param(2, False, torch.float32, False, id="2-ddp-float32"),
    pytest.param(4, False, torch.float32, True, id="4-ddp-float32-weighted"),
    pytest.param(4, False, torch.float64, True, id="4-ddp-float64-weighted"),
    pytest.param(2, True, torch.float64, True, id="2-fsdp-float64-weighted"),
    pytest.param(4, True, torch.float32, False, id="4-fsdp-float32"),
    pytest.param(4, True, torch.float32, True, id="4-fsdp-float32-weighted"),
]


@pytest.mark.parametrize(("world", "fsdp", "dtype", "weighted"), CASES)
def test_processes_train_as_one_does(
    world: int, fsdp: bool, dtype: torch.dtype, weighted: bool, tmp_path: Path
) -> None:
    expected = trained(Processes(), dtype, weighted)
    for got in run_in_processes(world, in_parallel, tmp_path, fsdp, dtype, weighted):
        error = worst(got.gradients, expected.gradients)
        curve = max(abs(a / b - 1) for a, b in zip(got.losses, expected.losses))
        norm = max(abs(a / b - 1) for a, b in zip(got.norms, expected.norms))
        print(error, curve, norm)
        assert error < BOUND[dtype]
        assert got.losses == pytest.approx(expected.losses, rel=BOUND[dtype])
        assert got.norms == pytest.approx(expected.norms, rel=BOUND[dtype])
