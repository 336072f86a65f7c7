"""Building and installing without torch, without nvcc, as sdist and wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an sdist holds, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "checkout"
    copy.mkdir()
    files = run("git", "ls-files").split() if (ROOT / ".git").exists() else pytest.skip("not a git checkout")
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((ROOT / file).read_bytes())
    code = "from setuptools.build_meta import build_sdist; build_sdist('out')"
    run(sys.executable, "-c", code, cwd=copy)
    (archive,) = (copy / "out").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.glob("affnet_kernels-*")
    return unpacked


def test_sdist_has_the_sources(source: Path) -> None:
    for file in ("setup.py", "csrc/extension.cpp", "csrc/activations.h", "affnet_kernels/py.typed", "LICENSE"):
        assert (source / file).exists(), file
    assert list((source / "csrc" / "cpu").glob("*.cpp"))
    assert list((source / "csrc" / "cpu").glob("*.h"))


@pytest.mark.parametrize(
    "reason", ["torch is not importable here", "AFFNET_SKIP_EXTENSION=1 is set", "no C++ compiler"]
)
def test_wheel_without_the_extension(source: Path, tmp_path: Path, reason: str) -> None:
    """The pure-Python package, with the reason said."""
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    environment = {
        "torch is not importable here": {"PYTHONPATH": str(tmp_path)},
        "AFFNET_SKIP_EXTENSION=1 is set": {"AFFNET_SKIP_EXTENSION": "1"},
        "no C++ compiler": {"CXX": "a-compiler-that-is-not-there"},
    }[reason]
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    said = run(sys.executable, "-c", code, cwd=source, **environment)
    assert f"building without the compiled extension: {reason}" in said or reason in said
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "affnet_kernels/kernels/__init__.py" in names
    assert "affnet_kernels/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or name.endswith(".so")]


def test_forced_cuda_needs_a_cuda_torch(source: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=source,
        env=os.environ | {"FORCE_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "expected a CUDA build of torch and nvcc for FORCE_CUDA=1, got torch" in done.stderr
