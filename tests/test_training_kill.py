"""What is left of a training run that is killed, or that cannot write one of its files; checkpoints themselves are
broken in tests/test_distributed_checkpoints.py.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from affnet_kernels.training import Settings, logs, train
from affnet_kernels.training.checkpoints import read_file
from tests import tiny_task
from tests.processes import saved
from tests.test_training import SMALL, run_state, same

ROOT = Path(__file__).parents[1]


def tiny(out: Path, *, resume: bool = False) -> None:
    train(tiny_task.RECIPE, Settings(out, resume=resume, log_every=1, save_every=2, progress=False))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of the tiny run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    tiny(out)
    return run_state(out)


def test_sigkill_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The command itself on digits, with a worker: killed at some step of the second epoch, resumed in this process."""
    recipe, out = SMALL.replace(epochs=3), tmp_path / "killed"
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    options = ["--log-every", "1", "--save-every", "2", "--workers", "1", "--quiet"]
    files = ["--recipe", str(tmp_path / "recipe.toml"), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "affnet_kernels", "train", *files, *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        text=True,
    )
    await_rows(out / logs.STEPS, 5, process)  # of three steps an epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    done = saved(out)
    assert 3 <= 3 * done["epoch"] + done["step"] < 9  # neither before the first epoch's end nor finished
    train(recipe, Settings(out, resume=True, log_every=1, save_every=2, progress=False))
    train(recipe, Settings(tmp_path / "whole", log_every=1, save_every=2, progress=False))
    assert same(run_state(out), run_state(tmp_path / "whole"))


def await_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(logs.read_rows(path)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {count} rows in {path} after two minutes"
        time.sleep(0.01)


def full_for_best(patch: pytest.MonkeyPatch, error: OSError) -> None:
    """The disk is full half-way through best.pt."""
    save = torch.save

    def stub(state: Any, file: Any) -> None:
        if "best.pt" not in str(getattr(file, "name", "")):
            save(state, file)
            return
        file.write(b"PK" + bytes(1000))
        raise error

    patch.setattr(torch, "save", stub)


def full_for_rows(patch: pytest.MonkeyPatch, error: OSError) -> None:
    """The disk is full at the seventh row of a log."""
    add, calls = Path.open, []

    def stub(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "a":
            calls.append(path)
            if len(calls) == 6:  # the first row makes the file
                raise error
        return add(path, mode, **options)

    patch.setattr(Path, "open", stub)


def full_for_events(patch: pytest.MonkeyPatch, error: OSError) -> None:
    """The disk is full for TensorBoard, which finds out in a thread and raises at a later call."""
    from torch.utils.tensorboard import SummaryWriter

    def stub(writer: SummaryWriter) -> None:
        raise error

    patch.setattr(SummaryWriter, "flush", stub)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("fill", "what"),
    [
        (full_for_best, r"best\.pt"),
        (full_for_rows, r"steps\.csv"),
        (full_for_events, "TensorBoard's events into .*run"),
    ],
)
def test_a_full_disk(
    tmp_path: Path,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fill: Callable[[pytest.MonkeyPatch, OSError], None],
    what: str,
    number: int,
) -> None:
    """One sentence, no debris; afterwards the run goes on as if nothing had happened."""
    out, error = tmp_path / "run", OSError(number, os.strerror(number))
    with monkeypatch.context() as patch:
        fill(patch, error)
        with pytest.raises(OSError, match=rf"train: expected to write .*{what}.*, got: {error.strerror}; .*--resume"):
            tiny(out)
    assert not list(out.glob(".*.part"))
    tiny(out, resume=True)
    assert same(run_state(out), expected)


def test_a_damaged_result_is_recognised(tmp_path: Path) -> None:
    """best.pt with a bit flipped, which `torch.load` itself would read."""
    tiny(tmp_path / "run")
    path = tmp_path / "run" / "best.pt"
    values = next(iter(read_file(path)["model_state_dict"].values())).numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(values) + 5] ^= 16
    path.write_bytes(content)
    assert torch.load(path)["classes"] == tiny_task.CLASSES
    with pytest.raises(ValueError, match=r"expected a complete checkpoint, got .*best\.pt, which is damaged: a wrong"):
        read_file(path)


def test_half_a_row_of_a_log_is_dropped(tmp_path: Path, expected: dict[str, Any]) -> None:
    """As a process leaves it that is killed while it writes."""
    out = tmp_path / "run"
    tiny(out)
    for name in (logs.EPOCHS, logs.STEPS):
        text = (out / name).read_text()
        (out / name).write_text(text[: len(text) - 9])
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    newest.rename(tmp_path / "newest")
    tiny(out, resume=True)
    assert same(run_state(out), expected)
