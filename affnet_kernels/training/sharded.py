"""Checkpoints that any number of processes write and read together, by `torch.distributed.checkpoint`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from affnet_kernels.training.processes import Processes

PREFIX, PART, VALUES, MANIFEST = "checkpoint-", ".checkpoint.part", "values.pt", "manifest.json"
KEPT = 2


class Checkpoints:
    """The last two checkpoints in a folder, which all processes see.

    A checkpoint is a folder: `torch.distributed.checkpoint`'s files, in which each process writes its share of the
    tensors; `values.pt` with the rest; `manifest.json` with the sum of every file. It is written under another name,
    brought to the disk, and renamed when it is complete. Only then is the oldest one removed.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.processes = folder, processes

    def exist(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return bool(self._found())

    def save(
        self, values: dict[str, Any], model: nn.Module, optimizer: Optimizer, average: AveragedModel | None
    ) -> None:
        """Write a checkpoint of plain values and of what is trained; every process calls it.

        Raises:
            OSError: it cannot be written, in any process; the earlier ones are as they were.
            ValueError: the processes do not see one folder.
        """
        part = self.folder / PART
        self._agree(lambda: self._begin(part, values), first=True)
        self._agree(lambda: _expect_shared(part))
        self._agree(lambda: _write_shares(part, _states(model, optimizer, average)))
        rank = self.processes.rank
        own = [path for path in part.iterdir() if path.name.startswith(f"__{rank}_")]
        sums = {name: value for sums in self.processes.gather(_sums(own)) for name, value in sums.items()}
        self._agree(lambda: self._finish(part, sums), first=True)

    def load(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The plain values of the last complete checkpoint, and under "folder" where the sharded ones are.

        `say` is told what was passed over. None where there is no checkpoint at all.

        Raises:
            ValueError: there are checkpoints, and none is complete.
        """
        values, faults = self.processes.gather(self._newest() if self.processes.rank == 0 else None)[0]
        if values is None and faults:
            raise ValueError(f"{'; '.join(faults)}; nothing is left to resume from")
        if faults:
            say(f"{'; '.join(faults)}; {values['folder']} takes its place")
        return values

    def restore(
        self, values: dict[str, Any], model: nn.Module, optimizer: Optimizer, average: AveragedModel | None
    ) -> None:
        """Put back what was trained, from the folder that `load` named, divided in that way or another.

        Raises:
            ValueError: the checkpoint is another network's.
        """
        parts = _states(model, optimizer, average)  # what is read has the shares of these, and takes their place
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                load(parts, checkpoint_id=values["folder"])
        except (CheckpointException, RuntimeError) as error:
            raise ValueError(
                f"train: expected the checkpoint {values['folder']} to be of this network, got another: {error}"
            ) from error
        set_model_state_dict(model, parts["network"])
        set_optimizer_state_dict(model, optimizer, parts["optimizer"])
        if average is not None:
            set_model_state_dict(average.module, parts["average"]["module"])
            average.n_averaged.copy_(parts["average"]["n_averaged"])

    def _newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        faults: list[str] = []
        for folder in reversed(self._found()):
            fault = _fault(folder)
            if fault is None:
                values = torch.load(folder / VALUES, map_location="cpu", weights_only=True)
                return {**values, "folder": str(folder)}, faults
            faults.append(f"train: expected a complete checkpoint, got {folder}, which is damaged: {fault}")
        return None, faults

    def _found(self) -> list[Path]:
        """The checkpoints, complete or damaged, the newest last."""
        paths = [path for path in self.folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal()]
        return sorted(paths, key=lambda path: int(path.name[len(PREFIX) :]))

    def _begin(self, part: Path, values: dict[str, Any]) -> None:
        shutil.rmtree(part, ignore_errors=True)  # what a killed process left
        part.mkdir()
        with (part / VALUES).open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())

    def _finish(self, part: Path, sums: dict[str, str]) -> None:
        sums |= _sums([part / VALUES, part / ".metadata"])
        with (part / MANIFEST).open("w") as file:
            json.dump({"processes": self.processes.world_size, "sha256": sums}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _synchronise(part)
        found = self._found()
        number = int(found[-1].name[len(PREFIX) :]) + 1 if found else 1
        part.rename(self.folder / f"{PREFIX}{number}")
        _synchronise(self.folder)
        for old in found[: max(0, len(found) + 1 - KEPT)]:
            shutil.rmtree(old, ignore_errors=True)

    def _agree(self, action: Callable[[], None], first: bool = False) -> None:
        """Run in every process, or the first alone; one that fails makes all fail, and nothing stays of the new one."""
        error: Exception | None = None
        if self.processes.rank == 0 or not first:
            try:
                action()
            except (OSError, RuntimeError, ValueError) as caught:
                error = caught
        errors = [error for error in self.processes.gather(error and _plain(error, self.folder)) if error is not None]
        if errors:
            if self.processes.rank == 0:
                shutil.rmtree(self.folder / PART, ignore_errors=True)
            raise errors[0]


def _states(model: nn.Module, optimizer: Optimizer, average: AveragedModel | None) -> dict[str, Any]:
    """What a checkpoint holds of them, by the parameters' own names, whichever way they are divided."""
    parts = {"network": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    if average is not None:
        parts["average"] = {"module": get_model_state_dict(average.module), "n_averaged": average.n_averaged}
    return parts


def _expect_shared(part: Path) -> None:
    if not part.is_dir():
        raise ValueError(f"train: expected --out in a file system that all machines share, got {part.parent}")


def _write_shares(part: Path, states: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # this process is alone
        try:
            save(states, checkpoint_id=part)
        except CheckpointException as error:  # not an Exception
            raise next(iter(error.failures.values()))[0] from error


def _plain(error: Exception, folder: Path) -> Exception:
    """An error that can travel to every process: the operating system's, if it comes from one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError):
        return type(cause)(
            f"train: expected to write a checkpoint into {folder}, got: {cause.strerror or cause}; "
            "an earlier one is kept, from which --resume continues"
        )
    return type(error)(str(error))


def _sums(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of files, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())["sha256"]
        got = _sums([folder / name for name in expected])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return (
            f"{error.strerror}: {Path(error.filename).name}" if isinstance(error, OSError) else f"{MANIFEST}: {error}"
        )
    damaged = [name for name in expected if got[name] != expected[name]]
    return f"a wrong checksum of {', '.join(damaged)}" if damaged else None


def _synchronise(folder: Path) -> None:
    """Bring the names of a folder's files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
