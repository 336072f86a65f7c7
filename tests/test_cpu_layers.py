"""The CPU kernel's elementary functions, activations, contractions and parameter gradients, each on its own."""

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
SOURCE = ROOT / "tests" / "cpu_host" / "layers.cpp"
CHECKS = re.findall(r"\{\"(\w+)\", \w+\}", SOURCE.read_text())
X86 = platform.machine().lower() in ("x86_64", "amd64")
# The compiler's options for each instruction set, and the features that it needs.
INSTRUCTION_SETS = {
    "baseline": ([], []),
    "avx2": (["-march=x86-64-v3"], ["avx2", "fma", "f16c"]),
    "avx512": (["-march=x86-64-v4"], ["avx512f", "avx512bw", "avx512dq", "avx512vl"]),
}


def _has(features: list[str]) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if X86 and cpuinfo.exists() else []
    return all(feature in flags for feature in features)


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    options, features = INSTRUCTION_SETS[name]
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    if not _has(features):
        pytest.skip(f"this machine has no {name}")
    target = tmp_path_factory.mktemp("cpu_layers") / name
    # GCC takes the undefined values in its own AVX-512 intrinsics for mistakes.
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]
    command = ["g++", "-O1", "-std=c++20", "-ffp-contract=fast", *warnings, *options, f"-DAFFNET_CAPABILITY={name}"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cpu'}"]
    subprocess.run([*command, *includes, SOURCE, "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("check", CHECKS)
def test_part(program: Path, check: str) -> None:
    run = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(bool(native.CPU.unsupported(None)), reason="the extension is not built")
def test_activations_have_the_same_names_and_order_in_python_and_cpp() -> None:
    """The host tests of the CUDA kernels pass an activation as its index in Python's list."""
    from affnet_kernels import _C

    assert _C.activations() == list(ACTIVATIONS)
