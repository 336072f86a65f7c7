"""Validation messages, the choice of a backend, and an extension that is missing or does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import affnet_kernels
from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer, ops
from affnet_kernels.backends import BACKENDS, select
from affnet_kernels.backends.native import Native
from tests.helpers import SHAPES, make_inputs

PACKAGE = Path(affnet_kernels.__file__).parent
X, W1, B1, W2, B2 = make_inputs(SHAPES["odd height"])  # C = 24, K = 4, D = 6
META = X.to("meta")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "expected x of shape [B, C, H, W] with H, W >= 1, got [24, 9, 8]"),
        ({"x": X[..., :0]}, ValueError, "expected x of shape [B, C, H, W] with H, W >= 1, got [2, 24, 9, 0]"),
        (
            {"x": X[:, :23]},
            ValueError,
            "expected x with 24 channels for w1 of 4 blocks of 6 channels, got 23 channels",
        ),
        (
            {"x": X.long()},
            TypeError,
            "expected x of one of the dtypes float64, float32, float16, bfloat16, got torch.int64",
        ),
        (
            {"x": X.to(torch.complex64)},
            TypeError,
            "expected x of one of the dtypes float64, float32, float16, bfloat16, got torch.complex64",
        ),
        ({"x": X.tolist()}, TypeError, "expected x to be a tensor, got list"),
        ({"w2": None}, TypeError, "expected w2 to be a tensor, got NoneType"),
        ({"w1": W1[0]}, ValueError, "expected w1 of shape [2, K, D, Dh], got [4, 6, 6]"),
        ({"w1": W1[:1]}, ValueError, "expected w1 of shape [2, K, D, Dh], got [1, 4, 6, 6]"),
        ({"w1": W1[..., :0]}, ValueError, "expected w1 of shape [2, K, D, Dh], got [2, 4, 6, 0]"),
        ({"b1": B1[:, :3]}, ValueError, "expected b1 of shape [2, 4, 6] for w1 of [2, 4, 6, 6], got [2, 3, 6]"),
        ({"w2": W2[..., :5]}, ValueError, "expected w2 of shape [2, 4, 6, 6] for w1 of [2, 4, 6, 6], got [2, 4, 6, 5]"),
        ({"b2": B2[..., None]}, ValueError, "expected b2 of shape [2, 4, 6] for w1 of [2, 4, 6, 6], got [2, 4, 6, 1]"),
        ({"w1": W1.to("meta")}, ValueError, "expected w1 on cpu, where x is, got meta"),
        ({"x": META}, ValueError, "expected w1 on meta, where x is, got cpu"),
        ({"b2": B2.double()}, TypeError, "expected b2 of w1's dtype torch.float32, got torch.float64"),
        (
            {"x": X.double()},
            TypeError,
            "expected parameters of torch.float64 for x of torch.float64, got torch.float32",
        ),
        (
            {"x": X.half(), "w1": W1.bfloat16(), "b1": B1.bfloat16(), "w2": W2.bfloat16(), "b2": B2.bfloat16()},
            TypeError,
            "expected parameters of torch.float16 or torch.float32 for x of torch.float16, got torch.bfloat16",
        ),
        ({"sparsity_threshold": -0.5}, ValueError, "expected sparsity_threshold >= 0, got -0.5"),
        ({"sparsity_threshold": float("nan")}, ValueError, "expected sparsity_threshold >= 0, got nan"),
        ({"sparsity_threshold": "a"}, TypeError, "expected sparsity_threshold to be a number, got str"),
        (
            {"activation": "prelu"},
            ValueError,
            "expected activation to be one of ['relu', 'silu', 'gelu', 'tanh', 'identity'], got 'prelu'",
        ),
        (
            {"backend": "mps"},
            ValueError,
            "expected backend to be None or one of ['cpu', 'triton', 'cuda', 'reference'], got 'mps'",
        ),
    ],
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    call = {"x": X, "w1": W1, "b1": B1, "w2": W2, "b2": B2} | changes
    with pytest.raises(error) as caught:
        fused_aff_mixer(**call)
    assert str(caught.value) == f"fused_aff_mixer: {message}"


def test_a_named_backend_that_cannot_run() -> None:
    with pytest.raises(NotImplementedError) as caught:
        fused_aff_mixer(X, W1, B1, W2, B2, backend="cuda")
    first, *rest = str(caught.value).splitlines()
    assert first == (
        "fused_aff_mixer: expected a backend that can run this call, got backend='cuda', which cannot; "
        "leave backend=None to let one be chosen"
    )
    assert [line.split(":")[0].strip() for line in rest] == ["cpu", "triton", "cuda", "reference"]
    assert "expected a tensor on cuda, got one on cpu" in rest[2]


def test_the_first_that_can_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MixerSpec.of(X, W1)
    assert select.__wrapped__(spec, None).NAME == "cpu"
    for backend in BACKENDS[:-1]:
        monkeypatch.setattr(backend, "unsupported", lambda spec: ["not today"])
    assert select.__wrapped__(spec, None).NAME == "reference"
    with pytest.raises(NotImplementedError, match="cpu: not today"):
        select.__wrapped__(spec, "cpu")


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 4096), (1, 2, 2048), (1, 4096, 1), (8, 1, 512)])
def test_thin_maps_on_a_cpu(batch: int, height: int, width: int) -> None:
    """The CPU kernel is faster than the reference on maps of a few rows or columns too."""
    spec = MixerSpec.of(X, W1)._replace(batch=batch, height=height, width=width)
    if not available_backends(spec)["cpu"]:
        assert select(spec, None).NAME == "cpu"


def test_available_backends() -> None:
    assert list(available_backends()) == ["cpu", "triton", "cuda", "reference"]
    assert available_backends(MixerSpec.of(X, W1))["cuda"] != []
    assert available_backends(MixerSpec.of(META, W1))["cpu"] == ["expected a tensor on cpu, got one on meta"]


RUN = """
import warnings
warnings.simplefilter("error")
import affnet_kernels, torch
mixer = affnet_kernels.AFFMixer(16)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for size in (8, 9):
        mixer(torch.randn(2, 16, size, size))
print(len(caught), *(w.message for w in caught))
print(*(name for name, why in affnet_kernels.available_backends().items() if not why))
"""


def run_copy(tmp_path: Path, prepare: Any) -> tuple[str, str]:
    """Import a copy of the package, changed by `prepare`, without a warning; what it says at use, and its backends."""
    copy = tmp_path / "affnet_kernels"
    shutil.copytree(PACKAGE, copy)
    prepare(copy)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    warning, backends = done.stdout.splitlines()
    return warning, backends


def without_extension(copy: Path) -> None:
    for path in copy.glob("_C*"):
        path.unlink()


def built_for_another_torch(copy: Path) -> None:
    facts = json.loads((copy / "_C.json").read_text())
    (copy / "_C.json").write_text(json.dumps(facts | {"torch": "2.1.0"}))


def failed_build(copy: Path) -> None:
    (copy / "_C.json").write_text(json.dumps({"failed": "Python.h: No such file", "torch": torch.__version__}))


def broken_library(copy: Path) -> None:
    for path in copy.glob("_C*.so"):
        path.write_bytes(b"not a library")


def untouched(copy: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "warning", "backends"),
    [
        (untouched, "0", "cpu reference"),
        (without_extension, "1 affnet_kernels: the compiled extension is not built;", "reference"),
        (
            built_for_another_torch,
            f"1 affnet_kernels: the compiled extension was built for torch 2.1.0, and torch {torch.__version__} is",
            "reference",
        ),
        (failed_build, "1 affnet_kernels: the compiled extension was not built: Python.h: No such file;", "reference"),
        (broken_library, f"1 affnet_kernels: the compiled extension, built for torch {torch.__version__}", "reference"),
    ],
)
def test_an_extension_that_does_not_fit(tmp_path: Path, prepare: Any, warning: str, backends: str) -> None:
    said, can_run = run_copy(tmp_path, prepare)
    assert said.startswith(warning)
    assert can_run == backends
    if prepare is not untouched:
        assert "pip install --no-build-isolation" in said, "it says how to mend it"


def test_import_is_quick_and_quiet(tmp_path: Path) -> None:
    """No CUDA initialisation, no compilation, no file written; a fork still works."""
    code = """
import os, torch, affnet_kernels
assert not torch.cuda.is_initialized()
pid = os.fork()
if pid == 0:
    affnet_kernels.AFFMixer(8)(torch.randn(1, 8, 4, 4))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    environment = {"PYTHONPATH": str(PACKAGE.parent), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_every_backend_is_explained_in_words() -> None:
    for name, reasons in available_backends(MixerSpec.of(X.to("meta"), W1)).items():
        assert name == "reference" or all(len(reason) > 20 for reason in reasons)


def test_the_choice_is_explained() -> None:
    explained = affnet_kernels.explain(X, W1, B1, W2, B2, activation="silu")
    assert explained.chosen == "cpu"
    assert list(explained.reasons) == ["cpu", "triton", "cuda", "reference"]
    assert explained.reasons["cpu"].startswith("runs: it comes first, ")
    assert "expected a tensor on cuda, got one on cpu" in explained.reasons["cuda"]
    assert explained.reasons["reference"] == "can run this call, but cpu is preferred"
    assert str(explained).splitlines()[0].startswith("  cpu: runs")


def test_it_is_explained_why_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    select.cache_clear()
    for backend in BACKENDS[:-1]:
        monkeypatch.setattr(backend, "unsupported", lambda spec: ["not today"])
    explained = affnet_kernels.explain(X, W1)
    select.cache_clear()
    assert explained.chosen == "reference"
    assert explained.reasons["reference"] == "runs: the backends that come before it cannot"
    assert explained.reasons["cpu"] == "cannot run this call: not today"


def test_a_named_backend_is_explained() -> None:
    explained = affnet_kernels.explain(X, W1, backend="reference")
    assert explained.chosen == "reference"
    assert explained.reasons["reference"] == "runs: it was asked for by name"
    assert explained.reasons["cpu"] == "can run this call, but backend='reference' was asked for"
    assert affnet_kernels.explain(X, W1, backend="cuda").chosen is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_call_without_a_cuda_device_is_explained() -> None:
    spec = MixerSpec.of(X, W1)._replace(device=torch.device("cuda", 0))
    refusals = available_backends(spec)
    assert refusals["cuda"] != []
    assert any(reason.startswith("expected a CUDA device that PyTorch can use") for reason in refusals["triton"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_extension_with_cuda_and_no_device() -> None:
    built = SimpleNamespace(build_info=lambda: {"cuda": "13.0"}, cuda_limits=lambda: {"channels": 256, "plane": 2**30})
    spec = MixerSpec.of(X, W1)._replace(device=torch.device("cuda", 0))
    (reason,) = Native("cuda", built, "").unsupported(spec)
    assert reason.startswith("expected a CUDA device that PyTorch can use, got cuda:0: ")


def test_the_schemas_of_the_extension_and_of_python_agree() -> None:
    for schema in ops.SCHEMAS:
        name = schema.partition("(")[0]
        registered = getattr(torch.ops.affnet_kernels, name).default._schema
        assert registered == torch._C.parse_schema(f"affnet_kernels::{schema}")


def test_public_names() -> None:
    expected = {"AFFMixer", "MixerSpec", "available_backends", "explain", "fused_aff_mixer", "replace_mixers"}
    assert set(affnet_kernels.__all__) == expected
