"""Triton's compiler, JIT and launcher for compute capability 9.0, on a stand-in for libcuda.so.1.

`python -m tests.triton_versions` runs these tests under every version of Triton that a GPU machine may have.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends.triton import launch
from affnet_kernels.backends.triton.compilation import one_parser_at_a_time
from affnet_kernels.backends.triton.launch_table import MAX_SIZE
from affnet_kernels.backends.triton.matrices import dft_matrices
from affnet_kernels.spec import MixerSpec
from tests.stub_driver.driver import build

pytestmark = pytest.mark.xdist_group("triton launch")  # one worker, one report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report = run_on_stub("launches", tmp_path_factory)
    print(f"Triton {report['triton']}, host time in us: {report['host_us']}")
    return report


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_on_stub("background", tmp_path_factory)


def run_on_stub(script: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a script of `tests.stub_driver` prints, run with an empty cache of compiled kernels."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests marked gpu launch on it")
    try:
        environment = build(tmp_path_factory.mktemp("libcuda"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-W", "ignore", "-m", f"tests.stub_driver.{script}"]
    run = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout)


def test_kernels_compile_within_the_shared_memory_of_the_launch_tables(report: dict[str, Any]) -> None:
    assert [row for row in report["compiled"] if row["shared"] > row["allowed"]] == []


def test_every_activation_compiles_and_no_other_does(report: dict[str, Any]) -> None:
    assert report["activations"] == dict.fromkeys(ACTIVATIONS, True) | {"prelu": False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_launch_forward_and_two_backward(report: dict[str, Any], dtype: str) -> None:
    assert report["launched"][dtype] == {
        "first forward": ["forward_kernel"],
        "first backward": ["backward_kernel", "sum_kernel"],
        "second forward": ["forward_kernel"],
        "second backward": ["backward_kernel", "sum_kernel"],
    }


def test_nothing_is_compiled_after_warm(report: dict[str, Any]) -> None:
    assert report["warm"]["kernels"] == 5  # two directions of two dtypes, and one reduction
    assert report["warm"]["progress"] == [[done, 5] for done in range(1, 6)]
    assert report["compiled_after_warm"] == 0


def test_unaligned_tensors_get_a_kernel_of_their_own(report: dict[str, Any]) -> None:
    assert report["unaligned"] == {"addresses": True, "compiled": True}


def test_hooks_around_launches_are_called(report: dict[str, Any]) -> None:
    assert report["hooks"] == ["forward_kernel"]


def test_a_launcher_with_other_arguments_is_left_to_triton(report: dict[str, Any]) -> None:
    assert report["other_launcher"] == [[1, 2], [3]]


def test_a_call_costs_the_host_less_than_one_launch_by_the_jit(report: dict[str, Any]) -> None:
    """It takes 0.6 times as long; the backward, with two launches and six allocations, 1.1 to 1.3 times."""
    host = report["host_us"]
    assert host["forward"] < 0.8 * host["launch by the JIT"], host
    assert host["backward"] < 1.5 * host["launch by the JIT"], host


def test_the_backward_is_compiled_in_the_background_and_compiles_nothing_itself(compiled: dict[str, Any]) -> None:
    nothing: dict[str, list[str]] = {"itself": [], "background": []}
    assert compiled["eager"] == {
        "forward": {"itself": ["forward_kernel"], "background": ["backward_kernel", "sum_kernel"]},
        "backward": nothing,
        "second forward": nothing,
        "second backward": nothing,
    }


def test_a_backward_that_comes_early_compiles_no_kernel_twice(compiled: dict[str, Any]) -> None:
    names = [name for step in compiled["at once"].values() for where in step.values() for name in where]
    assert sorted(names) == ["backward_kernel", "forward_kernel"]  # all image sizes share one `sum_kernel`


def test_every_way_to_train_compiles_in_the_background(compiled: dict[str, Any]) -> None:
    assert compiled["forward"] == {
        "operator": ["backward_kernel", "sum_kernel"],
        "torch.compile": ["backward_kernel", "sum_kernel"],
        "frozen parameters": ["backward_kernel"],
        "torch.func": [],  # the sizes of its backward are not known before it runs
    }


def test_inference_compiles_no_backward(compiled: dict[str, Any]) -> None:
    assert compiled["inference"] == {"inference": [], "training after it": ["backward_kernel", "sum_kernel"]}


def test_an_error_in_the_background_is_raised_by_the_backward(compiled: dict[str, Any]) -> None:
    assert compiled["error"] == {
        "raised": "backward_kernel does not compile",
        "again": ["backward_kernel", "sum_kernel"],
    }
    assert compiled["escaped"] == []


def test_a_forked_process_waits_for_no_compilation(compiled: dict[str, Any]) -> None:
    assert compiled["forked"]


def test_python_3_11_compiles_nothing_in_the_background(compiled: dict[str, Any]) -> None:
    assert (compiled["by default"] == []) == (sys.version_info[:2] == (3, 11))


def test_threads_may_compile_on_python_3_11() -> None:
    """Its parser raises SystemError where threads meet in it, which happens when it collects garbage."""
    from triton.runtime.jit import JITFunction

    from affnet_kernels.kernels.mixer import backward_kernel

    function = JITFunction(backward_kernel.fn)  # also where the tests run kernels in the interpreter

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            sum(range(100))

    errors: list[str] = []

    def parse() -> None:
        for _ in range(100):
            garbage = [Garbage() for _ in range(50)]
            del garbage
            try:
                function.parse()
            except SystemError as error:
                errors.append(str(error))

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-5)
    gc.set_threshold(100)
    try:
        with one_parser_at_a_time():
            threads = [threading.Thread(target=parse) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
    assert errors == []


def test_matrices_outlive_calls_with_many_other_sizes() -> None:
    """A captured CUDA graph reads them at every replay, and knows only their address."""

    def plan(height: int, width: int) -> launch.ForwardPlan:
        return launch.forward_plan(MixerSpec(1, 8, height, width, 1, 8, torch.float32, torch.device("cpu"), "relu"), 3)

    captured = plan(16, 16).matrices.data_ptr()
    others = [plan(height, width).matrices for height in range(1, MAX_SIZE + 1) for width in range(1, MAX_SIZE + 1)]
    del others
    assert plan(16, 16).matrices.data_ptr() == captured
    assert dft_matrices.cache_info().maxsize is None
