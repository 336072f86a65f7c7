"""`python -m affnet_kernels`, the README's code, and the words that must not be in the project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import affnet_kernels
from affnet_kernels import __main__ as cli
from affnet_kernels import ops
from affnet_kernels.backends import BACKENDS
from affnet_kernels.commands import check

ROOT = Path(__file__).parents[1]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    for fact in (affnet_kernels.__version__, torch.__version__, "extension", "backends, in order of preference:"):
        assert fact in said
    for backend in BACKENDS:
        assert re.search(rf"^  {backend.NAME}: .+", said, re.MULTILINE)


def test_check_passes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SHAPES", check.SHAPES[3:])  # the small ones, which Triton's interpreter runs too
    assert cli.main(["check"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^cpu +cpu .* ok$", said, re.MULTILINE)) == len(check.SHAPES) * len(check.BOUNDS)
    assert "no failures" in said


def test_check_finds_a_wrong_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = BACKENDS[0]
    right = cpu.forward
    monkeypatch.setattr(ops, "EXTENSION", None)  # calls go through the operator and so through the backend's methods
    monkeypatch.setattr(cpu, "forward", lambda *arguments: right(*arguments) * (1 + 1e-5))
    monkeypatch.setattr(check, "SHAPES", check.SHAPES[-1:])
    assert cli.main(["check"]) == 1
    assert "FAIL: out of bounds" in capsys.readouterr().out


def test_check_survives_a_crash(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(ops, "EXTENSION", None)
    monkeypatch.setattr(BACKENDS[0], "forward", crash)
    monkeypatch.setattr(check, "SHAPES", check.SHAPES[-1:])
    assert cli.main(["check"]) == 1
    said = capsys.readouterr().out
    assert "FAIL: RuntimeError: out of luck" in said
    assert re.search(r"^reference +cpu .* ok$", said, re.MULTILINE)


def test_no_command_shows_the_usage() -> None:
    done = subprocess.run([sys.executable, "-m", "affnet_kernels"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "info | check" in done.stderr


def test_readme_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_readme_links_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_warm_says_why_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["warm", "64@32"]) == 2
    assert "expected maps as CHANNELS@HxW" in capsys.readouterr().err
    assert cli.main(["warm", "64@64x64"]) == 1
    assert "64@64x64 does not run on triton: " in capsys.readouterr().err
