"""Processes that train one network together, started by torchrun: DistributedDataParallel, or FSDP2 (`fully_shard`)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from affnet_kernels.models.affnet import STAGES
from affnet_kernels.training.batch_norm import synchronise_batch_norms
from affnet_kernels.training.processes import Processes


class Distributed(Processes):
    """This process among those of the default process group; see `launch.joined`.

    Args:
        device: this process's.
        fsdp: divide parameters, gradients, their averages and the optimizer's state among the processes, instead of
            copying them.
    """

    def __init__(self, device: torch.device | str = "cpu", fsdp: bool = False) -> None:
        super().__init__(device)
        self.rank, self.world_size, self.fsdp = dist.get_rank(), dist.get_world_size(), fsdp

    def wrap(self, model: nn.Module) -> nn.Module:
        model = synchronise_batch_norms(model, self.device)
        if self.fsdp:
            self._plain = copy.deepcopy(model)  # what is divided refuses to be copied
            return self._sharded(model)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Synchronised BatchNorms have the same buffers everywhere, so that they need not be sent before each step.
        known = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before 2.13
        options: dict[str, Any] = {"device_ids": ids, "gradient_as_bucket_view": True, option: False}
        return DistributedDataParallel(model, **options)

    def average(self, model: nn.Module, decay: float) -> AveragedModel:
        if not self.fsdp:
            return super().average(self.unwrapped(model), decay)
        average = AveragedModel(self._plain, multi_avg_fn=_of_shards(get_ema_multi_avg_fn(decay)), use_buffers=True)
        self._sharded(average.module)
        return average

    def unwrapped(self, model: nn.Module) -> nn.Module:
        return model.module if isinstance(model, DistributedDataParallel) else model

    def whole(self, model: nn.Module) -> nn.Module:
        if not self.fsdp:
            return self.unwrapped(model)
        self._plain.load_state_dict(_whole_state_dict(model))
        return self._plain

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {key: value.detach().cpu() for key, value in _whole_state_dict(model).items()}

    def last_part(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
        elif isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def sum(
        self,
        values: Tensor,  # [n]
    ) -> Tensor:  # [n]
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def clip(self, model: nn.Module, limit: float) -> Tensor:  # []
        norm = super().clip(model, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _sharded(self, model: nn.Module) -> nn.Module:
        """`model` under `fully_shard`: its stages are gathered one after the other, and then what else there is."""
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.contiguous()  # channels-last parameters are refused; maps may be channels-last
                dist.broadcast(tensor, 0)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        stages = [module for name, module in model.named_modules() if name.rpartition(".")[2] in STAGES]
        for module in (*stages, model):
            shard: FSDPModule = fully_shard(module, mesh=mesh)
            shard.set_force_sum_reduction_for_comms(True)  # gloo has no mean; the sum is divided after it
        return model


def _whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


Average = Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]


def _of_shards(average: Average) -> Average:
    """`average` of this process's part of each tensor: operators for lists refuse buffers and shards in one list."""

    def local(tensors: Iterable[Tensor]) -> list[Tensor]:
        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def average_shards(averages: Sequence[Tensor], values: Sequence[Tensor], count: Any) -> None:
        average(local(averages), local(values), count)

    return average_shards
