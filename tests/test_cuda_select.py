"""When the backend "cuda" is chosen, and the reasons it gives when it cannot run; needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from affnet_kernels import MixerSpec
from affnet_kernels.backends import BACKENDS, native, select, triton
from affnet_kernels.backends.native import Native, missing_target
from affnet_kernels.backends.preference import PREFERENCES

GPU = torch.device("cuda")

needs_extension = pytest.mark.skipif(native.EXTENSION is None, reason="the extension is not built")


def spec(size: int, channels: int = 16, dtype: torch.dtype = torch.float32) -> MixerSpec:
    return MixerSpec(4, 8 * channels, size, size, 8, channels, dtype, GPU, "relu")


class Built:
    """An extension that was built for CUDA, with the limits of the one at hand."""

    def build_info(self) -> dict[str, Any]:
        return {"cuda": "13.0", "cuda_targets": "8.0;8.9;9.0;10.0"}

    def cuda_limits(self) -> dict[str, int]:
        assert native.EXTENSION is not None
        return native.EXTENSION.cuda_limits()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Native:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return Native("cuda", Built(), "")  # type: ignore[arg-type]


@needs_extension
def test_sizes(cuda: Native) -> None:
    for size, channels in ((1, 1), (7, 18), (97, 13), (4096, 256), (2**15, 1)):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            assert cuda.unsupported(spec(size, channels, dtype)) == []
    assert native.EXTENSION is not None
    most = native.EXTENSION.cuda_limits()["channels"]
    assert cuda.unsupported(spec(8, most)) == []
    assert cuda.unsupported(spec(8, most + 1)) == [
        f"expected up to {most} channels and hidden channels per block, got {most + 1} and {most + 1}"
    ]
    assert cuda.unsupported(spec(2**15 + 1)) == ["expected up to 1073741824 elements per plane, got 32769 x 32769"]
    assert cuda.unsupported(spec(8)._replace(device=torch.device("cpu"))) == [
        "expected a tensor on cuda, got one on cpu"
    ]


@needs_extension
def test_the_limits_are_the_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from the extension, in a build without CUDA too."""
    assert native.EXTENSION is not None
    assert sorted(native.EXTENSION.cuda_limits()) == ["channels", "plane"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(Built, "cuda_limits", lambda self: {"channels": 5, "plane": 60})
    backend = Native("cuda", Built(), "")  # type: ignore[arg-type]
    assert backend.unsupported(spec(8, 6)) == [
        "expected up to 5 channels and hidden channels per block, got 6 and 6",
        "expected up to 60 elements per plane, got 8 x 8",
    ]
    assert backend.unsupported(spec(7, 5)) == []


@pytest.mark.parametrize(
    ("targets", "capability", "runs"),
    [
        ("8.0;8.9;9.0;10.0", (8, 0), True),
        ("8.0;8.9;9.0;10.0", (8, 6), True),
        ("8.0;8.9;9.0;10.0", (9, 0), True),
        ("8.0;8.9;9.0;10.0", (10, 3), True),
        ("8.0;8.9;9.0;10.0", (12, 0), False),
        ("8.0;8.9;9.0;10.0", (7, 5), False),
        ("9.0 10.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 0), False),
        ("8.9", (8, 6), False),
        ("10.0a", (10, 3), False),
        ("9.0a", (9, 0), True),
        ("Hopper", (9, 0), True),
    ],
)
def test_targets(targets: str, capability: tuple[int, int], runs: bool) -> None:
    reasons = missing_target(targets, capability)
    assert (reasons == []) is runs
    if not runs:
        assert re.match(f"the extension was built for {targets}, the device is ".replace("+", r"\+"), reasons[0])
        assert f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]} pip install" in reasons[0]


@pytest.mark.parametrize(
    ("size", "channels", "dtype", "chosen"),
    [
        (8, 40, torch.float32, "triton"),
        (32, 16, torch.bfloat16, "triton"),
        (32, 64, torch.float32, "triton"),
        (33, 16, torch.float32, "cuda"),
        (64, 8, torch.bfloat16, "cuda"),
        (8, 65, torch.float32, "cuda"),
    ],
)
def test_the_preferred_backend_is_chosen(
    monkeypatch: pytest.MonkeyPatch, size: int, channels: int, dtype: torch.dtype, chosen: str
) -> None:
    for backend in BACKENDS:
        monkeypatch.setattr(backend, "unsupported", lambda spec, name=backend.NAME: [] if name != "cpu" else ["no"])
    assert chosen == select.__wrapped__(spec(size, channels, dtype), None).NAME
    monkeypatch.setattr(triton, "unsupported", lambda spec: ["not here"])
    assert select.__wrapped__(spec(size, channels, dtype), None).NAME == "cuda"


def test_every_preference_states_its_basis() -> None:
    for row in PREFERENCES:
        assert row.basis == "predicted" or row.basis.startswith("measured on ")
        assert len(row.why) > 20
        assert set(row.order) <= ({"cuda", "triton"} if row.device == "cuda" else {row.device})
