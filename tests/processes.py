"""Functions run in several processes that train together, by gloo on this machine."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed import TCPStore
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

# What a run of training imports, which takes longer than the runs of the tests.
PRELOADED = ["affnet_kernels.training.distributed", "affnet_kernels.training.sharded", "matplotlib.figure"]
PRELOADED += ["torchmetrics.classification", "torch.utils.tensorboard", "torch._dynamo", "tests.killed_training"]


def run_in_processes(
    count: int, function: Callable[..., Any], folder: Path, *arguments: Any, killed: bool = False
) -> list[Any]:
    """What `function(processes, *arguments)` returns in each of `count` processes, as torchrun would start them.

    The processes are forked from one that has imported PyTorch, so that they start at once. If one is to be `killed`,
    nothing is returned.
    """
    paths = [folder / f"result-{rank}.pt" for rank in range(count)]
    codes = _exit_codes(count, folder, _run, [(function, path, arguments) for path in paths])
    if killed:
        assert -signal.SIGKILL in codes
        return []
    assert codes == [0] * count, f"exit codes {codes}; see the processes' own output above"
    return [torch.load(path, weights_only=False) for path in paths]


class Ended(NamedTuple):
    """A command that has ended."""

    status: int | None
    output: str
    errors: str


def command_in_processes(
    count: int, module: str, arguments: list[str], folder: Path, **environment: str
) -> list[Ended]:
    """How `module.main(arguments)` ends in each of `count` processes."""
    paths = [(folder / f"output-{rank}.txt", folder / f"errors-{rank}.txt") for rank in range(count)]
    codes = _exit_codes(count, folder, _command, [(module, arguments, *pair, environment) for pair in paths])
    return [Ended(code, *(path.read_text() for path in pair)) for code, pair in zip(codes, paths, strict=True)]


def _exit_codes(
    count: int, folder: Path, target: Callable[..., None], arguments: list[tuple[Any, ...]]
) -> list[int | None]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent keeps it
    names = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    names["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    started = [
        context.Process(target=_start, args=({**names, "RANK": rank, "LOCAL_RANK": rank}, target, *rest), daemon=True)
        for rank, rest in enumerate(arguments)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + 300
    while any(process.is_alive() for process in started) and time.monotonic() < end:
        time.sleep(0.05)
        if any(process.exitcode for process in started):
            end = min(end, time.monotonic() + 30)  # torchrun, too, ends those that one has left
    for process in started:
        process.kill()
        process.join()
    return [process.exitcode for process in started]


def _start(environment: dict[str, Any], target: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in environment.items()})
    target(*arguments)


def _run(function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> None:
    from affnet_kernels.training.launch import joined

    try:
        with joined("cpu") as processes:
            torch.save(function(processes, *arguments), path)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _command(module: str, arguments: list[str], output: Path, errors: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(importlib.import_module(module).main(arguments))


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
