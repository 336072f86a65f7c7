"""The small parts of the CPU kernel, each on its own, on every instruction set that this machine has."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import native

ROOT = Path(__file__).parents[1]
HOST = ROOT / "tests" / "cpu_host"
# Transforms, shuffles, conversions and layouts; elementary functions, activations, contractions, parameter gradients.
PROGRAMS = ("transforms", "layers")
CHECKS = [
    (program, check)
    for program in PROGRAMS
    for check in re.findall(r"\{\"(\w+)\", \w+\}", (HOST / f"{program}.cpp").read_text())
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# The compiler's options for each instruction set, and the features that it needs.
INSTRUCTION_SETS = {
    "baseline": ([], []),
    "avx2": (["-march=x86-64-v3"], ["avx2", "fma", "f16c"]),
    "avx512": (["-march=x86-64-v4"], ["avx512f", "avx512bw", "avx512dq", "avx512vl"]),
}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def _has(features: list[str]) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if X86 and cpuinfo.exists() else []
    return all(feature in flags for feature in features)


def _compile(*arguments: str | Path) -> None:
    # GCC takes the undefined values in its own AVX-512 intrinsics for mistakes.
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cpu'}"]
    command = ["g++", "-O1", "-std=c++20", "-ffp-contract=fast", *warnings, *includes]
    subprocess.run([*command, *arguments], check=True)


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
def programs(
    request: pytest.FixtureRequest,
    plans: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    name = request.param
    options, features = INSTRUCTION_SETS[name]
    if not _has(features):
        pytest.skip(f"this machine has no {name}")
    folder = tmp_path_factory.mktemp(name)
    for program in PROGRAMS:
        source = HOST / f"{program}.cpp"
        _compile(*options, f"-DAFFNET_CAPABILITY={name}", source, *plans, "-o", folder / program)
    return {program: folder / program for program in PROGRAMS}


@needs_compiler
@pytest.mark.parametrize(("program", "check"), CHECKS)
def test_part(programs: dict[str, Path], program: str, check: str) -> None:
    done = subprocess.run([programs[program], check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_check_is_found(program: str) -> None:
    functions = re.findall(r"^void (?!check_)\w+\(\) \{", (HOST / f"{program}.cpp").read_text(), re.MULTILINE)
    assert len([name for name, _ in CHECKS if name == program]) == len(functions) > 0


@pytest.mark.skipif(bool(native.CPU.unsupported(None)), reason="the extension is not built")
def test_activations_have_the_same_names_and_order_in_python_and_cpp() -> None:
    """The host tests of the CUDA kernels pass an activation as its index in Python's list."""
    from affnet_kernels import _C

    assert _C.activations() == list(ACTIVATIONS)
