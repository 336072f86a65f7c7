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
from affnet_kernels.commands import check, warm
from affnet_kernels.models import create_model

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


def test_imports_stay_light() -> None:
    """Neither the networks nor the commands import what takes long or may be missing."""
    heavy = {"torch._dynamo", "timm", "huggingface_hub", "onnx", "matplotlib", "PIL", "safetensors"}
    program = f"import affnet_kernels.models, affnet_kernels.__main__, sys; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_warm_says_why_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["warm", "64@32"]) == 2
    assert "expected maps as CHANNELS@HxW" in capsys.readouterr().err
    assert cli.main(["warm", "64@64x64"]) == 1
    assert "64@64x64 does not run on triton: " in capsys.readouterr().err
    assert cli.main(["warm"]) == 2
    assert "expected maps as CHANNELS@HxW, or --model, got neither" in capsys.readouterr().err
    assert cli.main(["warm", "--model", "affnet_t", "--size", "0"]) == 2
    assert "expected --size >= 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "size"), [("affnet_et", 224), ("affnet_et", 250), ("affnet_t", 33)])
def test_warm_knows_the_maps_of_a_network(name: str, size: int) -> None:
    model = create_model(name).eval()
    seen: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, affnet_kernels.AFFMixer):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    with torch.no_grad():
        model(torch.randn(1, 3, size, size))
    assert list(dict.fromkeys(seen)) == warm.maps_of(name, size)


def test_warm_takes_each_map_of_a_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[affnet_kernels.MixerSpec] = []
    monkeypatch.setattr(warm.triton, "unsupported", lambda spec: ["too large"] if spec.height > 32 else [])
    monkeypatch.setattr(warm.triton, "warm", lambda found, progress: specs.extend(found) or 1)
    assert cli.main(["warm", "96@32x32", "--model", "affnet_t", "--size", "256", "320", "--dtype", "bfloat16"]) == 0
    assert [(spec.channels, spec.height) for spec in specs] == [(96, 32), (160, 16), (192, 8), (160, 20), (192, 10)]
    assert {(spec.dtype, spec.blocks, spec.activation) for spec in specs} == {(torch.bfloat16, 8, "silu")}
