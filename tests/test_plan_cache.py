"""The plan cache (csrc/plan_cache.h): bounds, order of eviction, pinned plans, threads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "cuda_host" / "plan_cache.cpp"
CHECKS = re.findall(r'^      \{"(\w+)", ', SOURCE.read_text(), re.MULTILINE)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("plan_cache") / "checks"
    command = ["g++", "-O1", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ROOT / 'csrc'}", str(SOURCE)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("check", CHECKS)
def test_plan_cache(program: Path, check: str) -> None:
    done = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_check_is_found() -> None:
    assert len(CHECKS) == len(re.findall(r"^void \w+\(\) \{$", SOURCE.read_text(), re.MULTILINE)) > 0
