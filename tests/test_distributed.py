"""N processes train as one does: gradients, curves, averages; by DistributedDataParallel and by FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from affnet_kernels.training import Recipe, Settings, logs, train
from affnet_kernels.training.batch_norm import SyncBatchNorm2d, synchronise_batch_norms
from affnet_kernels.training.checkpoints import read_file
from affnet_kernels.training.processes import Processes
from tests import small_task
from tests.processes import run_in_processes

BOUND = {False: 1e-5, True: 1e-10}  # by whether it is float64


class Run(NamedTuple):
    """What a run of training gives in a process."""

    gradients: dict[str, Tensor]  # of the first step, before they are clipped
    losses: list[float]
    norms: list[float]
    tested: list[str]  # the metrics of every epoch
    best: dict[str, Tensor]


def run(processes: Any, recipe: Recipe, out: Path, fsdp: bool = False) -> Run:
    """Train by the engine."""
    gradients: dict[str, Tensor] = {}
    clip = processes.clip

    def spy(model: nn.Module, limit: float) -> Tensor:
        if not gradients:
            gradients.update(whole_gradients(processes.unwrapped(model)))
        return clip(model, limit)

    processes.fsdp, processes.clip = fsdp, spy
    train(recipe, Settings(out, log_every=1, progress=False), processes)
    steps, epochs = logs.read_rows(out / logs.STEPS), logs.read_rows(out / logs.EPOCHS)
    losses, norms = ([float(row[name]) for row in steps] for name in ("loss", "gradient norm"))
    return Run(gradients, losses, norms, [row["test/top1"] for row in epochs], read_file(out / "best.pt"))


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad.clone() for name, grad in named}


def error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The relative L2 error of all gradients as one vector."""
    assert got.keys() == expected.keys()
    difference = torch.stack([(got[name] - gradient).norm() for name, gradient in expected.items()])
    return float(difference.norm() / torch.stack([gradient.norm() for gradient in expected.values()]).norm())


@pytest.mark.parametrize(
    ("world", "fsdp", "accumulate", "options"),
    [
        pytest.param(4, False, 1, {}, id="4-DDP"),
        pytest.param(2, False, 3, {"double": True, "weighted": True}, id="2-DDP-float64-weighted-three-parts"),
        pytest.param(4, True, 1, {"weighted": True}, id="4-FSDP2-weighted"),
        pytest.param(2, True, 3, {"double": True, "channels_last": True}, id="2-FSDP2-float64-three-parts"),
    ],
)
def test_processes_train_as_one_does(
    world: int, fsdp: bool, accumulate: int, options: dict[str, bool], tmp_path: Path
) -> None:
    """Four processes get 1, 2, 1 and 2 of the 6 images of a step; where the loss is weighted, by the class."""
    double = options.get("double", False)
    recipe = small_task.RECIPE.replace(accumulate=accumulate, options=options)
    expected = run(Processes(), recipe, tmp_path / "one")
    runs = run_in_processes(world, run, tmp_path / "results", recipe, tmp_path / "many", fsdp)
    bound = BOUND[double]
    for got in runs:
        assert error(got.gradients, expected.gradients) < bound
    assert runs[0].losses == pytest.approx(expected.losses, rel=bound)
    assert runs[0].norms == pytest.approx(expected.norms, rel=bound)
    assert runs[0].tested == expected.tested
    assert runs[0].best["model_state_dict"].keys() == expected.best["model_state_dict"].keys()
    assert max_error(runs[0].best["model_state_dict"], expected.best["model_state_dict"]) < 1e-9 or not double


def max_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(float((got[key] - tensor).abs().max()) for key, tensor in expected.items())


# -- BatchNorm --


def normalised(processes: Processes | None, shares: list[int], channels_last: bool, dtype: torch.dtype) -> list[Tensor]:
    """This process's part of two BatchNorms' outputs and of dx; the sums of all gradients of parameters; buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4, momentum=None)).to(dtype)
    x, dy = (3 * torch.randn(sum(shares), 8, 9, 7) + 2).to(dtype), torch.randn(sum(shares), 4, 7, 5).to(dtype)
    if processes is not None:
        model = synchronise_batch_norms(model, processes.device)
        assert isinstance(model[0], SyncBatchNorm2d)
        x, dy = (tensor.split(shares)[processes.rank] for tensor in (x, dy))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.requires_grad_()
    for _ in range(2):
        y = model(x)
    y.backward(dy)
    if channels_last and len(x):
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None
    gradients = [parameter.grad for parameter in model.parameters()]
    if processes is not None:
        gradients = [processes.sum(gradient) for gradient in gradients]
    with torch.no_grad():
        tested = model.eval()(x)
    return [y.detach(), x.grad, tested, *gradients, *model.buffers()]


@pytest.mark.parametrize(
    ("shares", "channels_last", "dtype"),
    [([2, 3], False, torch.float64), ([2, 0, 1, 1], False, torch.float64), ([3, 1], True, torch.float32)],
    ids=["two", "four, one of them idle", "channels last"],
)
def test_synchronised_batch_norm(shares: list[int], channels_last: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """As `nn.BatchNorm2d` on the whole batch, in values, gradients and running statistics."""
    expected = normalised(None, shares, channels_last, dtype)
    got = run_in_processes(len(shares), normalised, tmp_path, shares, channels_last, dtype)
    bound = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for whole, parts in zip(expected[:3], zip(*(results[:3] for results in got), strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, **bound)
    for results in got:
        torch.testing.assert_close(results[3:], expected[3:], **bound)


def one_value(processes: Processes) -> str:
    model = synchronise_batch_norms(nn.BatchNorm2d(2), processes.device)
    with pytest.raises(ValueError, match="SyncBatchNorm2d") as caught:
        model(torch.zeros(1 - processes.rank, 2, 1, 1))
    return str(caught.value)


def test_one_value_in_all_processes_has_no_variance(tmp_path: Path) -> None:
    messages = run_in_processes(2, one_value, tmp_path)
    assert messages[0] == (
        "SyncBatchNorm2d: expected more than 1 value per channel in training, "
        "got 1 in all processes, [1, 2, 1, 1] in this one"
    )


def test_synchronised_batch_norm_alone_is_batch_norm() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4)
    alone = synchronise_batch_norms(copy.deepcopy(plain), torch.device("cpu"))
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(alone(x), plain(x))
    assert alone.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(alone.running_var, plain.running_var)
