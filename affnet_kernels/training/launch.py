"""How this process joins those that torchrun started with it."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from affnet_kernels.training.processes import Processes

# What a collective says when another process has ended: gloo's words, and NCCL's.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


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
    import torch.distributed as dist  # takes half a second, with what the rest of it needs
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from affnet_kernels.training.distributed import Distributed

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
    processes.launch = processes.gather(_launch())[0]
    try:
        with warnings.catch_warnings():
            if processes.rank:
                warnings.simplefilter("ignore")
            yield processes
    except Exception as error:
        _raise_once(error, processes)
    else:  # after an error it could wait for the others
        dist.destroy_process_group()


def _raise_once(error: Exception, processes: Processes) -> None:
    """Raise `error` in the first process that has one, and end the others in silence."""
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    store.set_timeout(timedelta(seconds=10))
    try:
        first = store.add("affnet_kernels/errors", 1) == 1
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
