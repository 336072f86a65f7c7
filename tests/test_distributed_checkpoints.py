"""Checkpoints that load in any number of processes, and that survive what can happen to a run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from affnet_kernels.training import Recipe, Settings, logs, sharded, train
from affnet_kernels.training.engine import Trainer
from affnet_kernels.training.processes import Processes
from tests import small_task, tiny_task
from tests.processes import command_in_processes, free_port, run_in_processes, saved
from tests.test_training import same

ROOT = Path(__file__).parent.parent


def settings(out: Path) -> Settings:
    return Settings(out, resume=True, save_every=1, log_every=1, progress=False)


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in logs.read_rows(out / logs.STEPS)]


def patch_save(change: Callable[[Trainer], None]) -> None:
    """Call `change` after every checkpoint, in this process only."""
    save = Trainer._save

    def save_and_change(trainer: Trainer) -> None:
        save(trainer)
        change(trainer)

    Trainer._save = save_and_change  # type: ignore[method-assign]


# -- other numbers of processes --


def one_more_step(processes: Any, recipe: Recipe, out: Path, fsdp: bool) -> None:
    """Resume the run, and leave it after the next checkpoint."""

    def leave(_: Trainer) -> None:
        raise InterruptedError

    processes.fsdp = fsdp
    patch_save(leave)
    with pytest.raises(InterruptedError):
        train(recipe, settings(out), processes)


def test_a_checkpoint_loads_in_any_number_of_processes(tmp_path: Path) -> None:
    """A run of four steps, each by other processes, is the run of one process; float64."""
    recipe = small_task.RECIPE.replace(limit=26, options={"double": True, "weighted": True})
    train(recipe, settings(tmp_path / "one"))
    for world, fsdp in ((1, False), (4, False), (2, True)):
        run_in_processes(world, one_more_step, tmp_path / "results", recipe, tmp_path / "many", fsdp)
    for number, files in ((2, 4), (3, 2)):  # of which each process has written one
        assert len(list((tmp_path / "many" / f"checkpoint-{number}").glob("*.distcp"))) == files
    train(recipe, settings(tmp_path / "many"))
    assert len(losses(tmp_path / "many")) == 4
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-10)


# -- what can happen to a run of one process --


def state(out: Path) -> dict[str, Any]:
    """The newest checkpoint, but for times."""
    return {name: value for name, value in saved(out).items() if name not in ("seconds", "loading", "computing")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_task.RECIPE, settings(out))
    return out


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(_: Any, file: Any, **__: Any) -> None:
    file.write('{"processes": 1, "sha')
    file.flush()
    die()


def save_and_die(state: dict[str, Any], checkpoint_id: Path) -> None:
    sharded_save(state, checkpoint_id=checkpoint_id)
    die()


sharded_save = sharded.save
MOMENTS: dict[str, tuple[Any, str, Any]] = {
    "before the tensors": (sharded, "save", die),
    "after the tensors": (sharded, "save", save_and_die),
    "in the manifest": (json, "dump", write_half),
    "before it is renamed": (Path, "rename", die),
    "before the oldest is removed": (shutil, "rmtree", die),
}


def killed_while_saving(processes: Processes, out: Path, moment: str, step: int) -> None:
    """Train, and die in the checkpoint after `step`."""
    owner, name, replacement = MOMENTS[moment]

    def arm(trainer: Trainer) -> None:
        if trainer._steps_done() == step - 1:
            # The folder of a part that is not there is removed first, without effect.
            setattr(owner, name, _unless_part(replacement) if name == "rmtree" else replacement)

    patch_save(arm)
    train(tiny_task.RECIPE, settings(out), processes)


def _unless_part(function: Callable[..., None]) -> Callable[..., None]:
    return lambda path, **options: None if Path(path).name == sharded.PART else function(path, **options)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_a_checkpoint_is_written(
    moment: str, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The previous checkpoint is used, or the new one if it was complete; the run is the uninterrupted one."""
    out = tmp_path / "run"
    run_in_processes(1, killed_while_saving, tmp_path / "results", out, moment, 7, killed=True)
    train(tiny_task.RECIPE, settings(out))
    step = 7 if moment == "before the oldest is removed" else 6
    assert f"train: resumed after step {step} of 15 in {out}" in capsys.readouterr().err
    assert same(state(out), state(finished))
    assert sorted(path.name for path in out.glob("*checkpoint*")) == ["checkpoint-14", "checkpoint-15"]


def killed_beside_another(processes: Processes, out: Path) -> None:
    if processes.rank == 1:
        killed_while_saving(processes, out, "after the tensors", 7)
    train(tiny_task.RECIPE, settings(out), processes)


def test_a_kill_of_one_process_while_both_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other one stops; one process goes on alone from the previous checkpoint."""
    out = tmp_path / "run"
    run_in_processes(2, killed_beside_another, tmp_path / "results", out, killed=True)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    train(tiny_task.RECIPE, settings(out))
    assert "train: resumed after step 6 of 15" in capsys.readouterr().err


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a bit of a tensor": ("__0_0.distcp", flip, "a wrong checksum of __0_0.distcp"),
    "a cut file": ("values.pt", cut, "a wrong checksum of values.pt"),
    "a lost file": (".metadata", Path.unlink, "No such file or directory: .metadata"),
    "a cut manifest": ("manifest.json", cut, "manifest.json: Expecting"),
    "no manifest": ("manifest.json", Path.unlink, "No such file or directory: manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is said; the run from the previous one is the same."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    name, act, reason = DAMAGES[damage]
    act(out / "checkpoint-15" / name)
    train(tiny_task.RECIPE, settings(out))
    said = capsys.readouterr().err
    assert f"train: expected a complete checkpoint, got {out}/checkpoint-15, which is damaged: {reason}" in said
    assert f"; {out}/checkpoint-14 takes its place" in said
    assert "train: resumed after step 14 of 15" in said
    assert same(state(out), state(finished))


def test_nothing_is_left(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for number in (14, 15):
        flip(out / f"checkpoint-{number}" / "values.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint-15, which is damaged: .*checkpoint-14, which is .*nothing is left"
    ):
        train(tiny_task.RECIPE, settings(out))


def disk_full(processes: Processes, out: Path) -> str:
    """Train by processes of which the last cannot write more than two kilobytes of a file from some step on."""

    def fill(trainer: Trainer) -> None:
        if trainer._steps_done() == 6 and processes.rank == processes.world_size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    patch_save(fill)
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the text is the result)
        train(tiny_task.RECIPE, settings(out), processes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return str(caught.value)


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk(world: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one of the processes: all say so, and the checkpoint before it is as it was."""
    out = tmp_path / "run"
    messages = run_in_processes(world, disk_full, tmp_path / "results", out)
    assert messages == world * [
        f"train: expected to write a checkpoint into {out}, got: File too large; "
        "an earlier one is kept, from which --resume continues"
    ]
    assert sorted(path.name for path in out.glob("*checkpoint*")) == ["checkpoint-5", "checkpoint-6"]
    train(tiny_task.RECIPE, settings(out))
    assert "train: resumed after step 6 of 15" in capsys.readouterr().err


# -- torchrun --


def test_torchrun_restarts_and_resumes(tmp_path: Path) -> None:
    """After one process has been killed; the run is the uninterrupted one, to the last bit."""
    out, failures, recipe = tmp_path / "run", tmp_path / "failures", tmp_path / "recipe.toml"
    failures.mkdir()
    (failures / "kill-1-8").touch()
    recipe.write_text(tiny_task.RECIPE.to_toml(), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = ["-m", "tests.killed_training", "train", "--device", "cpu", "--recipe", str(recipe), "--out", str(out)]
    ended = subprocess.run(
        [*torchrun, "--master-port", str(free_port()), *command, "--save-every", "2", "--log-every", "1"],
        cwd=ROOT,
        env={**os.environ, "FAILURES": str(failures), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("train: expected 2 processes until the end, got one that has ended") == 1
    assert "train: resumed after step 7 of 15" in ended.stderr
    assert ended.stdout.count("best top1") == 1
    run_in_processes(2, uninterrupted, tmp_path / "results", tmp_path / "whole")
    assert logs.read_rows(out / logs.STEPS) == logs.read_rows(tmp_path / "whole" / logs.STEPS)


def uninterrupted(processes: Processes, out: Path) -> None:
    train(tiny_task.RECIPE, Settings(out, log_every=1, progress=False), processes)


def test_an_error_of_one_process_is_read_once(tmp_path: Path) -> None:
    """Whichever has it; the others, which wait for it, end in silence."""
    (tmp_path / "recipe.toml").write_text(tiny_task.RECIPE.to_toml(), encoding="utf-8")
    arguments = ["train", "--device", "cpu", "--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    failures = tmp_path / "failures"
    failures.mkdir()
    (failures / "error-2-3").touch()
    ended = command_in_processes(3, "tests.killed_training", arguments, tmp_path / "results", FAILURES=str(failures))
    assert ended[2] == (2, "", "killed_training: expected no failure, got one\n")
    assert [(process.output, process.errors) for process in ended[:2]] == [("", ""), ("", "")]
    ended = command_in_processes(2, "tests.killed_training", arguments, tmp_path / "again", FAILURES=str(failures))
    refused = f"train: expected a folder without a run, got {tmp_path / 'run'}; continue it with --resume\n"
    assert sorted(process.errors for process in ended) == ["", refused]
