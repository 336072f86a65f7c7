"""Functions run in several processes that train together, by gloo on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

# What a run of training imports, which takes longer than the runs of the tests.
PRELOADED = ["affnet_kernels.training.distributed", "matplotlib.figure", "tests.small_task", "torch.utils.tensorboard"]
PRELOADED += ["torchmetrics.classification", "torch._dynamo"]


def run_in_processes(
    count: int, function: Callable[..., Any], folder: Path, *arguments: Any, killed: bool = False
) -> list[Any]:
    """What `function(processes, *arguments)` returns in each of `count` processes, as torchrun would start them.

    The processes are forked from one that has imported PyTorch, so that they start at once. If one is to be `killed`,
    nothing is returned.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    paths = [folder / f"result-{rank}.pt" for rank in range(count)]
    started = [
        context.Process(target=_run, args=(rank, count, port, function, path, arguments), daemon=True)
        for rank, path in enumerate(paths)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    for process in started:
        process.kill()
    codes = [process.exitcode for process in started]
    if killed:
        assert -signal.SIGKILL in codes
        return []
    assert codes == [0] * count, f"exit codes {codes}; see the processes' own output above"
    return [torch.load(path, weights_only=False) for path in paths]


def saved(folder: Path) -> dict[str, Any]:
    """The newest checkpoint in a folder, whole: "network", "optimizer" and "average", and the plain values."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    with tempfile.TemporaryDirectory() as scratch:
        dcp_to_torch_save(newest, f"{scratch}/whole.pt")
        tensors = torch.load(f"{scratch}/whole.pt", weights_only=True)
    return {**tensors, **torch.load(newest / "values.pt", weights_only=True)}


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run(
    rank: int, count: int, port: int, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]
) -> None:
    from affnet_kernels.training.distributed import joined

    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        with joined("cpu") as processes:
            torch.save(function(processes, *arguments), path)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
