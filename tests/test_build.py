"""Building as sdist and wheel: with a compiler that fails, without one, without torch, without nvcc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


WHEEL = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
EDITABLE = "from setuptools.build_meta import build_editable; build_editable('dist')"


def attempt(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = attempt(*command, cwd=cwd, **environment)
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
    (copy / "affnet_kernels" / "_C.json").write_text("{}")  # of a build in place
    code = "from setuptools.build_meta import build_sdist; build_sdist('out')"
    run(sys.executable, "-c", code, cwd=copy, AFFNET_SKIP_EXTENSION="1")
    (archive,) = (copy / "out").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.glob("affnet_kernels-*")
    return unpacked


@pytest.fixture
def checkout(source: Path, tmp_path: Path) -> Path:
    """A copy of the sources to build in."""
    return Path(shutil.copytree(source, tmp_path / "checkout"))


def installed(checkout: Path, target: Path) -> Path:
    """Unpack the wheel that was built, as pip would, and return the package's folder."""
    (wheel,) = (checkout / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target / "affnet_kernels"


def compiler(tmp_path: Path, script: str) -> str:
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_sdist_has_the_sources(source: Path) -> None:
    for file in ("setup.py", "csrc/extension.cpp", "csrc/activations.h", "affnet_kernels/py.typed", "LICENSE"):
        assert (source / file).exists(), file
    assert list((source / "csrc" / "cpu").glob("*.cpp"))
    assert list((source / "csrc" / "cpu").glob("*.h"))
    assert not (source / "affnet_kernels" / "_C.json").exists(), "that of another build"


def without_torch(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    return {"PYTHONPATH": str(tmp_path)}


NO_EXTENSION = {
    "torch is not importable here": without_torch,
    "AFFNET_SKIP_EXTENSION=1 is set": lambda _: {"AFFNET_SKIP_EXTENSION": "1"},
    "there is no C++ compiler": lambda _: {"CXX": "a-compiler-that-is-not-there -O2"},
}


@pytest.mark.parametrize("reason", NO_EXTENSION)
def test_wheel_without_the_extension(checkout: Path, tmp_path: Path, reason: str) -> None:
    """The pure-Python package, with the reason said and recorded."""
    said = run(sys.executable, "-c", WHEEL, cwd=checkout, **NO_EXTENSION[reason](tmp_path))
    assert f"building without the compiled extension: {reason}" in said
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "affnet_kernels/kernels/__init__.py" in names
    assert "affnet_kernels/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or name.endswith(".so")]
    facts = json.loads((installed(checkout, tmp_path / "site") / "_C.json").read_text())
    assert facts["failed"].startswith(reason)


FAILING_COMPILERS = {
    "no Python.h": (
        "echo 'probe.cpp:2:10: fatal error: Python.h: No such file or directory' >&2; exit 1",
        "fatal error: Python.h: No such file or directory",
        "compiling it failed: ",
    ),
    "no OpenMP, and an error in the sources": (
        """case "$*" in
  *-fopenmp*probe.cpp*) echo "clang: error: unsupported option '-fopenmp'" >&2; exit 1;;
  *csrc*) exit 1;;
  *) exec c++ "$@";;
esac""",
        "building without OpenMP, on one thread: ",
        "compiling it failed: Error compiling objects",
    ),
}


@pytest.mark.parametrize(("case", "build"), [*((case, WHEEL) for case in FAILING_COMPILERS), ("no Python.h", EDITABLE)])
def test_a_compiler_that_fails(checkout: Path, tmp_path: Path, case: str, build: str) -> None:
    """The Python package is installed all the same, with the reason said and recorded."""
    script, hint, reason = FAILING_COMPILERS[case]
    said = run(sys.executable, "-c", build, cwd=checkout, CXX=compiler(tmp_path, script))
    assert hint in said
    assert f"building without the compiled extension: {reason}" in said
    package = checkout / "affnet_kernels" if build == EDITABLE else installed(checkout, tmp_path / "site")
    assert json.loads((package / "_C.json").read_text())["failed"].startswith(reason)
    assert not list(package.glob("*.so"))


CUDA_TORCH = """
import torch.utils.cpp_extension
torch.version.cuda, torch.utils.cpp_extension.CUDA_HOME = "13.0", "/nowhere"
"""


def test_a_build_for_cuda_that_fails_is_followed_by_one_without(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUDA_TORCH)  # a CUDA build of torch whose nvcc has gone
    script, _, reason = FAILING_COMPILERS["no OpenMP, and an error in the sources"]
    environment = {"CXX": compiler(tmp_path, script), "PYTHONPATH": str(tmp_path)}
    said = run(sys.executable, "-c", WHEEL, cwd=checkout, **environment)
    assert "building without CUDA, which failed: nvcc not found at '/nowhere/bin/nvcc'" in said
    assert f"building without the compiled extension: {reason}" in said


@pytest.mark.parametrize("variable", ["FORCE_CUDA", "AFFNET_REQUIRE_EXTENSION"])
def test_a_required_extension_fails_loudly(source: Path, tmp_path: Path, variable: str) -> None:
    environment = without_torch(tmp_path) | {variable: "1"}
    done = attempt(sys.executable, "setup.py", "--version", cwd=source, **environment)
    assert done.returncode != 0
    expected = (
        "setup.py: expected to build the extension, required by FORCE_CUDA or AFFNET_REQUIRE_EXTENSION: torch is not"
    )
    assert expected in done.stderr


def test_a_required_extension_that_does_not_compile_fails_loudly(checkout: Path, tmp_path: Path) -> None:
    script, hint, _ = FAILING_COMPILERS["no Python.h"]
    environment = {"CXX": compiler(tmp_path, script), "AFFNET_REQUIRE_EXTENSION": "1"}
    done = attempt(sys.executable, "-c", WHEEL, cwd=checkout, **environment)
    assert done.returncode != 0
    assert hint in done.stderr


USE = """
import warnings
warnings.simplefilter("error")
import torch, affnet_kernels
from affnet_kernels.__main__ import main

main(["info"])
mixer, x = affnet_kernels.AFFMixer(16), torch.randn(1, 16, 8, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    mixer(x)
    mixer(x[..., 1:])
(said,) = [str(warning.message) for warning in caught]
assert "AFFNET_SKIP_EXTENSION=1 is set; CPU tensors run on the slower reference" in said, said
"""


def test_a_python_only_install_imports_quietly_and_says_what_it_lacks(checkout: Path, tmp_path: Path) -> None:
    run(sys.executable, "-c", WHEEL, cwd=checkout, AFFNET_SKIP_EXTENSION="1")
    installed(checkout, tmp_path / "site")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "TRITON_INTERPRET": "0"}
    said = run(sys.executable, "-W", "error", "-c", USE, cwd=tmp_path, **environment)
    assert "the compiled extension was not built: AFFNET_SKIP_EXTENSION=1 is set" in said


REIMPORT = """
import sys
import torch

def run(x):
    import affnet_kernels
    torch.manual_seed(0)
    mixer = affnet_kernels.AFFMixer(16)
    y = mixer(x)
    y.square().sum().backward()
    return affnet_kernels, mixer, y.detach(), mixer.w1.grad

x = torch.randn(2, 16, 8, 8)
first = run(x)
for name in [name for name in sys.modules if name.split(".")[0] == "affnet_kernels"]:
    del sys.modules[name]
second = run(x)
assert second[0] is not first[0]
assert torch.equal(first[2], second[2]) and torch.equal(first[3], second[3])
assert torch.equal(first[1](x), first[2]), "what was made before still works"
torch.testing.assert_close(torch.compile(second[1], backend="eager", fullgraph=True)(x), second[2])
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    second[1](x)
assert counter.get_total_flops() > 0
"""


def test_import_again_after_deleting_the_package() -> None:
    run(sys.executable, "-c", REIMPORT)


def test_forced_cuda_needs_a_cuda_torch(source: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    done = attempt(sys.executable, "setup.py", "--version", cwd=source, FORCE_CUDA="1")
    assert done.returncode != 0
    assert "expected a CUDA build of torch and nvcc for FORCE_CUDA=1, got torch" in done.stderr
