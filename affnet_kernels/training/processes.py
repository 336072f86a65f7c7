"""The processes that train together: here one alone, and what the engine asks of any number of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from affnet_kernels.training.checkpoints import Checkpoints


class Processes:
    """One process alone. What trains in many overrides these methods; the engine asks nothing else."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What is called in place of `model` in training; its gradients are the MEAN over the processes."""
        return model

    def average(self, model: nn.Module, decay: float) -> AveragedModel:
        """The running average of a wrapped model; its `module` is what is evaluated."""
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def unwrapped(self, model: nn.Module) -> nn.Module:
        """The model that `wrap` got."""
        return model

    def last_part(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a step: gradients are exchanged in the last part only."""
        return nullcontext()

    def sum(
        self,
        values: Tensor,  # [n]
    ) -> Tensor:  # [n]
        """The sum over the processes, the same in each."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable object, in the order of ranks."""
        return [value]

    def clip(self, model: nn.Module, limit: float) -> Tensor:  # []
        """Scale the gradient of all processes down to an L2 norm of `limit`; the norm it had."""
        return nn.utils.clip_grad_norm_(model.parameters(), limit)

    def states(self, model: nn.Module, optimizer: Optimizer, average: AveragedModel | None) -> dict[str, Any]:
        """What a checkpoint holds of them, under "network", "optimizer" and "average"."""
        states = {"network": self.unwrapped(model).state_dict(), "optimizer": optimizer.state_dict()}
        return states | ({} if average is None else {"average": average.state_dict()})

    def load_states(
        self, states: dict[str, Any], model: nn.Module, optimizer: Optimizer, average: AveragedModel | None
    ) -> None:
        """Put back what `states` returned."""
        self.unwrapped(model).load_state_dict(states["network"])
        optimizer.load_state_dict(states["optimizer"])
        if average is not None:
            average.load_state_dict(states["average"])

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole state dict of a model, wrapped or averaged, on the CPU: for best.pt. Every process calls it."""
        return {key: value.detach().cpu() for key, value in self.unwrapped(model).state_dict().items()}

    def checkpoints(self, folder: Path) -> Checkpoints:
        """Where the run's checkpoints are kept."""
        return Checkpoints(folder)
