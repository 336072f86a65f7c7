"""The processes that train together: here one alone, and what the engine asks of any number of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Processes:
    """One process alone. What trains in many overrides these methods; the engine asks nothing else."""

    rank = 0
    world_size = 1
    launch = ""  # names the launcher that starts the processes again after one has ended, "" for none

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

    def whole(self, model: nn.Module) -> nn.Module:
        """A model, wrapped or averaged, as one process can call it alone. Every process asks for it."""
        return self.unwrapped(model)

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

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole state dict of a model, wrapped or averaged, on the CPU: for best.pt. Every process calls it."""
        return {key: value.detach().cpu() for key, value in self.unwrapped(model).state_dict().items()}
