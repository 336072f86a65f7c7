"""How a process joins others: its device, its place, and what counts as the same launch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from affnet_kernels import __main__ as cli
from affnet_kernels.training import Settings, train
from affnet_kernels.training.launch import joined
from affnet_kernels.training.processes import Processes
from tests import tiny_task
from tests.processes import command_in_processes


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, and under a torchrun that started one process."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for world in (None, "1"):
        if world is not None:
            monkeypatch.setenv("WORLD_SIZE", world)
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
        with joined("cpu") as processes:
            assert type(processes) is Processes
            assert (processes.rank, processes.world_size, processes.device.type) == (0, 1, "cpu")
            assert processes.launch == ("job" if world else "")


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with joined() as processes:
        assert processes.device == torch.device("cuda", 0)
    with joined("cpu") as processes:
        assert processes.device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with (
        pytest.raises(
            ValueError, match="expected a CUDA device for each process of a machine, got 0 of them for process 0"
        ),
        joined("cuda"),
    ):
        pass
    with pytest.raises(ValueError, match='expected the device to be "cpu" or "cuda", got \'tpu\''), joined("tpu"):
        pass


def test_only_the_same_launch_resumes_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Processes(), Processes()
    first.launch, second.launch = "host 1", "host 2"
    settings = Settings(tmp_path / "run", progress=False)
    train(tiny_task.RECIPE, settings, first)
    train(tiny_task.RECIPE, settings, first)
    assert "train: resumed after step 15 of 15" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a folder without a run"):
        train(tiny_task.RECIPE, settings, second)


def test_evaluate_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares of different lengths: the result is that of one process, printed once."""
    train(tiny_task.RECIPE, Settings(tmp_path / "run", progress=False))
    arguments = ["evaluate", str(tmp_path / "run" / "best.pt"), "--device", "cpu"]
    assert cli.main(arguments) == 0
    expected = capsys.readouterr().out
    assert expected.startswith("top1")
    ended = command_in_processes(3, "tests.killed_training", arguments, tmp_path / "results")
    assert ended == [(0, expected, ""), (0, "", ""), (0, "", "")]
