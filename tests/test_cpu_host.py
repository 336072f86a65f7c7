"""The small parts of the CPU kernel, each on its own: transforms, shuffles, conversions, the layout of thin maps."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "cpu_host" / "transforms.cpp"
CHECKS = re.findall(r"\{\"(\w+)\", \w+\}", SOURCE.read_text())
X86 = platform.machine().lower() in ("x86_64", "amd64")
# The compiler's name of each instruction set, and what it calls the features that the set needs.
INSTRUCTION_SETS = {
    "baseline": ([], []),
    "avx2": (["-march=x86-64-v3"], ["avx2", "fma", "f16c"]),
    "avx512": (["-march=x86-64-v4"], ["avx512f", "avx512bw", "avx512dq", "avx512vl"]),
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def _has(features: list[str]) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if X86 and cpuinfo.exists() else []
    return all(feature in flags for feature in features)


def _compile(*arguments: str | Path) -> None:
    # GCC takes the undefined values in its own AVX-512 intrinsics for mistakes.
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cpu'}"]
    subprocess.run(["g++", "-O1", "-std=c++20", *warnings, *includes, *arguments], check=True)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What makes plans and layouts, compiled once: it is the same for every instruction set."""
    folder = tmp_path_factory.mktemp("plans")
    objects = []
    for source in (ROOT / "csrc" / "cpu" / "fft").glob("*.cpp"):
        objects.append(folder / f"{source.stem}.o")
        _compile("-c", source, "-o", objects[-1])
    return objects


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def program(request: pytest.FixtureRequest, plans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    options, features = INSTRUCTION_SETS[name]
    if not _has(features):
        pytest.skip(f"this machine has no {name}")
    target = tmp_path_factory.mktemp("cpu_host") / name
    _compile(*options, f"-DAFFNET_CAPABILITY={name}", SOURCE, *plans, "-o", target)
    return target


@pytest.mark.parametrize("check", CHECKS)
def test_part(program: Path, check: str) -> None:
    done = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_check_is_found() -> None:
    functions = re.findall(r"^void (?!check_)\w+\(\) \{$", SOURCE.read_text(), re.MULTILINE)
    assert len(CHECKS) == len(functions) > 0
