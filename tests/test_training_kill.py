"""Training runs that are killed, that find no space, and whose checkpoints are damaged: what they resume from."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from affnet_kernels.training import Settings, logs, train
from affnet_kernels.training.checkpoints import read_file
from tests import tiny_task
from tests.test_training import SMALL, run_state, same

ROOT = Path(__file__).parents[1]
# A run of the tiny task in a process of its own, after the code that makes it die.
PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from affnet_kernels.training import Settings, checkpoints, train
from tests import tiny_task
{sabotage}
train(tiny_task.RECIPE, Settings(Path(sys.argv[1]), log_every=1, save_every=2, progress=False))
"""
# In place of torch.save: half of the fifth file, after the checkpoints of steps 2, 4 and 5 and best.pt, and death.
DIE_WHILE_WRITING = """
save, calls = torch.save, []
def half(state, file):
    calls.append(state)
    if len(calls) < 5:
        return save(state, file)
    import io
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
"""
DIE_BETWEEN_NAMES = """
replace, calls = os.replace, []
def once(source, target):
    replace(source, target)
    if Path(target).name == "previous.pt":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = once
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of the tiny run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    tiny(out)
    return run_state(out)


def tiny(out: Path, *, resume: bool = False) -> None:
    train(tiny_task.RECIPE, Settings(out, resume=resume, log_every=1, save_every=2, progress=False))


def started(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_sigkill_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The command itself on digits: killed at some step of an epoch, resumed in this process."""
    recipe, out = SMALL.replace(limit=24, epochs=3), tmp_path / "killed"
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    options = ["--log-every", "1", "--save-every", "2", "--workers", "1", "--quiet"]
    process = started(
        ["-m", "affnet_kernels", "train", "--recipe", str(tmp_path / "recipe.toml"), "--out", str(out), *options]
    )
    await_row(out / logs.STEPS, 5, process)  # of three steps an epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    done = read_file(out / "last.pt")
    assert 3 <= 3 * done["epoch"] + done["step"] < 9  # neither before the first epoch's end nor finished
    train(recipe, Settings(out, resume=True, log_every=1, save_every=2, progress=False))
    train(recipe, Settings(tmp_path / "whole", log_every=1, save_every=2, progress=False))
    assert same(run_state(out), run_state(tmp_path / "whole"))


def await_row(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(logs.read_rows(path)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {count} rows in {path} after two minutes"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("sabotage", "names", "said"),
    [
        (DIE_WHILE_WRITING, {"best.pt", "last.pt", "previous.pt", ".last.pt.part"}, "resumed after step 5 of 15"),
        (DIE_BETWEEN_NAMES, {"previous.pt", ".last.pt.part"}, "got none; previous.pt takes its place"),
    ],
)
def test_sigkill_during_checkpoint_writing(
    tmp_path: Path,
    expected: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    sabotage: str,
    names: set[str],
    said: str,
) -> None:
    out = tmp_path / "run"
    process = started(["-c", PROGRAM.format(sabotage=sabotage), str(out)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert {path.name for path in out.iterdir() if "pt" in path.name} == names
    tiny(out, resume=True)
    assert said in capsys.readouterr().err
    assert same(run_state(out), expected)
    assert not list(out.glob(".*.part"))


def stub_of_write(error: int) -> Callable[[Any, Any], None]:
    """In place of `torch.save`: a disk that is full half-way through."""

    def save(state: Any, file: Any) -> None:
        file.write(b"PK" + bytes(1000))
        raise OSError(error, os.strerror(error))

    return save


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_no_space_for_a_checkpoint(
    tmp_path: Path,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: int,
) -> None:
    out, save, calls = tmp_path / "run", torch.save, []

    def full_later(state: Any, file: Any) -> None:
        calls.append(state)
        (save if len(calls) < 4 else stub_of_write(error))(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_later)
        with pytest.raises(
            OSError, match=rf"expected to write .*\.pt, got: {os.strerror(error)}; the checkpoint before"
        ):
            tiny(out)
    assert not list(out.glob(".*.part"))
    assert read_file(out / "last.pt")["step"] == 4
    tiny(out, resume=True)
    assert "resumed after step" in capsys.readouterr().err
    assert same(run_state(out), expected)


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """The operating system itself ends the writing, in the middle of PyTorch's writer: one sentence, and no debris."""
    out = tmp_path / "run"
    process = started(["-c", PROGRAM.format(sabotage=LIMITED.format(bytes=4096)), str(out)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith(
        f"OSError: train: expected to write {out}/last.pt, got: File too large; the checkpoint before"
    )
    assert not list(out.glob("*.pt"))
    assert not list(out.glob(".*.part"))


def flip(content: bytes) -> bytes:
    """With another bit in a tensor: a file that `torch.load` reads without a word."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size if "/data/" in entry.filename else 0)
        values = archive.read(largest)
    place = content.index(values) + len(values) // 2
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": flip,
    "truncated": lambda content: content[: len(content) // 3],
    "empty": lambda content: b"",
    "another file": lambda content: b"no checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(
    tmp_path: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """The previous one is used, and said; without it nothing is, and that is said."""
    out = tmp_path / "run"
    tiny(out)
    last, previous = out / "last.pt", out / "previous.pt"
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    capsys.readouterr()
    tiny(out, resume=True)
    said = capsys.readouterr().err
    assert f"expected a complete checkpoint, got {last}, which is damaged: " in said
    assert "previous.pt takes its place" in said
    assert "resumed after step 14 of 15" in said
    assert same(run_state(out), expected)
    for path in (last, previous):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"last\.pt, which is damaged.*previous\.pt, which is damaged.*nothing is left"
    ):
        tiny(out, resume=True)


def test_half_a_row_of_a_log_is_dropped(tmp_path: Path, expected: dict[str, Any]) -> None:
    out = tmp_path / "run"
    tiny(out)
    for name in (logs.EPOCHS, logs.STEPS):
        text = (out / name).read_text()
        (out / name).write_text(text[: len(text) - 9])
    (out / "last.pt").unlink()
    tiny(out, resume=True)
    assert same(run_state(out), expected)
