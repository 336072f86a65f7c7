"""Processes that train one network together, started by torchrun: DistributedDataParallel, or FSDP2 (`fully_shard`)."""

from __future__ import annotations

import copy
import inspect
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from affnet_kernels.models.affnet import STAGES
from affnet_kernels.training.batch_norm import synchronise_batch_norms
from affnet_kernels.training.processes import Processes

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")  # in a collective's error


class Distributed(Processes):
    """This process among those of the default process group; see `joined`.

    Args:
        device: this process's.
        fsdp: divide parameters, gradients, their averages and the optimizer's state among the processes, instead of
            copying them.
    """

    def __init__(self, device: torch.device | str = "cpu", fsdp: bool = False) -> None:
        super().__init__(device)
        self.rank, self.world_size, self.fsdp = dist.get_rank(), dist.get_world_size(), fsdp
        self.launch = self.gather(_launch())[0]

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


@contextmanager
def joined(
    device: str | None = None,  # "cpu", "cuda", or None: CUDA where there is a device
    fsdp: bool = False,
) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them after: by NCCL between CUDA devices, else by gloo.

    Without torchrun, or where it started one process, this one is alone. The first process that meets an error raises
    it; those that stop because of it, or for the same reason, end in silence with status 2, so that it is read once.

    Raises:
        ValueError: this machine has fewer CUDA devices than processes, or `device` is another.
        ConnectionError: another process has ended; in one of those that remain.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        alone = Processes(_device(device, 0))
        alone.launch = _launch()
        yield alone
        return
    chosen = _device(device, int(os.environ["LOCAL_RANK"]))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, rank, world = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun's static rendezvous keeps its store over restarts, with the addresses of the processes that ended.
        # (Between machines the store is a new one each time, and each machine counts restarts on its own.)
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    processes = Distributed(chosen, fsdp)
    try:
        with warnings.catch_warnings():
            if processes.rank:
                warnings.simplefilter("ignore")
            yield processes
    except Exception as error:
        _raise_once(error, processes)
    finally:
        dist.destroy_process_group()


def _raise_once(error: Exception, processes: Processes) -> None:
    """Raise `error` in the first process that has one, and end the others in silence."""
    try:
        first = dist.distributed_c10d._get_default_store().add("affnet_kernels/errors", 1) == 1
    except RuntimeError:  # the store has ended too
        first = processes.rank == 0
    if not first:
        raise SystemExit(2) from None
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST):
        raise ConnectionError(
            f"train: expected {processes.world_size} processes until the end, got one that has ended; "
            "torchrun --max-restarts N starts all of them again, from the last checkpoint"
        ) from error
    raise error


def _launch() -> str:
    """What tells one torchrun from another: the job's name, if it has one, or the process on this machine."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def _device(name: str | None, local_rank: int) -> torch.device:
    """The device of that kind that belongs to this process."""
    if name not in (None, "cpu", "cuda"):
        raise ValueError(f'train: expected the device to be "cpu" or "cuda", got {name!r}')
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"train: expected a CUDA device for each process of a machine, got {torch.cuda.device_count()} of them "
            f"for process {local_rank}, counted from 0; torchrun --nproc-per-node gpu starts one process for each"
        )
    return torch.device("cuda", local_rank)


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
