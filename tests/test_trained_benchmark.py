"""The comparison of trained mixers, and of the training loop with a plain one, on a scale that takes seconds."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from affnet_kernels.models.token_mixers import MIXERS
from affnet_kernels.training import Recipe
from benchmarks import trained, training_speed


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of two steps, in place of the digits'."""
    recipe = Recipe.load("digits").replace(size=32, epochs=1, batch=4, limit=8, warmup_epochs=0.0, ema=0.5)
    monkeypatch.setattr(training_speed, "Recipe", SimpleNamespace(load=lambda name: recipe))
    monkeypatch.setattr(trained, "ROUNDS", 1)
    monkeypatch.setattr(trained, "BATCH", 4)
    return recipe


def test_every_mixer_is_trained_and_measured(short: Recipe, tmp_path: Path) -> None:
    """As the command does, in this process; a second comparison finds the runs of the first."""
    accuracies = {mixer: [trained.accuracy(short.replace(mixer=mixer, seed=1), tmp_path)] for mixer in MIXERS}
    assert trained.accuracy(short.replace(mixer="mlp", seed=1), tmp_path) == accuracies["mlp"][0]
    rows = trained.measured(short, accuracies)
    trained.write(rows, tmp_path)
    assert [row.mixer for row in rows] == list(MIXERS)
    assert all(0 < row.forward < row.step for row in rows)
    with (tmp_path / "trained.csv").open(newline="", encoding="utf-8") as file:
        written = {row["mixer"]: row for row in csv.DictReader(file)}
    assert written["fused"]["parameters"] == written["reference"]["parameters"]
    assert float(written["fused"]["multiply_adds"]) == float(written["reference"]["multiply_adds"])
    assert float(written["attention"]["multiply_adds"]) > float(written["fused"]["multiply_adds"])
    assert (tmp_path / "trained.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_mean_and_spread() -> None:
    row = trained.Row("digits", "fused", [97.0, 99.0], 865034, 22506816.0, 2.651, 7.952)
    assert trained.table([row])[-1] == "| digits | fused | 98.00 (97.00 to 99.00) | 0.87 | 22.5 | 2.65 | 7.95 |"


def test_both_loops_are_timed(
    short: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training_speed", "--rounds", "1", "--images", "8", "--size", "32"])
    training_speed.main()
    said = capsys.readouterr().out
    assert "plain loop" in said
    assert "% of the plain one's, pair by pair" in said
    assert "waiting for data" in said
