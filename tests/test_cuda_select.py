"""When the backend "cuda" is chosen, and the reasons it gives when it cannot run; needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from affnet_kernels import MixerSpec
from affnet_kernels.backends import BACKENDS, CUDA, explain_choice, native, select, triton
from affnet_kernels.backends.native import KernelPath, Native, missing_target
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

    def cuda_path(self, **facts: Any) -> tuple[str, str]:
        assert native.EXTENSION is not None
        return native.EXTENSION.cuda_path(**facts)

    def one_launch(self) -> bool:
        return True


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
    ("size", "channels", "forward", "backward", "chosen"),
    [
        (-8, 40, "one-launch", "one-launch", ("triton", "triton")),  # a negative size: in bfloat16
        (-14, 32, "one-launch", "one-launch", ("cuda", "cuda")),
        (8, 24, "one-launch", "one-launch", ("cuda", "cuda")),
        (8, 24, "one-launch", "planned", ("cuda", "triton")),
        (8, 40, "one-launch", "one-launch", ("triton", "triton")),
        (32, 16, "planned", "planned", ("triton", "triton")),
        (33, 16, "planned", "planned", ("cuda", "cuda")),
        (64, 8, "one-launch", "planned", ("cuda", "cuda")),
        (8, 65, "planned", "planned", ("cuda", "cuda")),
    ],
)
def test_the_preferred_kernel_is_chosen_for_each_pass(
    monkeypatch: pytest.MonkeyPatch, size: int, channels: int, forward: str, backward: str, chosen: tuple[str, str]
) -> None:
    for backend in BACKENDS:
        monkeypatch.setattr(backend, "unsupported", lambda spec, name=backend.NAME: [] if name != "cpu" else ["no"])
    ways = (KernelPath(forward, ""), KernelPath(backward, "" if backward == "one-launch" else "of a reason"))
    monkeypatch.setattr(CUDA, "path", lambda spec, is_backward: ways[is_backward])
    call = spec(abs(size), channels, torch.bfloat16 if size < 0 else torch.float32)
    assert chosen == tuple(select.__wrapped__(call, None, is_backward).NAME for is_backward in (False, True))
    assert all(select.__wrapped__(call, "triton", is_backward) is triton for is_backward in (False, True))
    monkeypatch.setattr(triton, "unsupported", lambda spec: ["not here"])
    assert all(select.__wrapped__(call, None, is_backward).NAME == "cuda" for is_backward in (False, True))


def test_the_ways_of_the_cuda_backend_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in BACKENDS:
        monkeypatch.setattr(backend, "unsupported", lambda spec, name=backend.NAME: [] if name != "cpu" else ["no"])
    ways = (KernelPath("one-launch", ""), KernelPath("planned", "no kernel has the size"))
    monkeypatch.setattr(CUDA, "path", lambda spec, is_backward: ways[is_backward])
    select.cache_clear()
    explained = explain_choice(spec(32), None)
    how = "; forward in one launch; backward planned, with cuFFT, because no kernel has the size"
    assert explained.chosen == "cuda"
    assert explained.reasons["cuda"].startswith("runs: it comes first, one launch reads x")
    assert explained.reasons["cuda"].endswith(f"; the backward pass goes to triton{how}")
    assert explained.reasons["triton"] == "can run this call, but cuda is preferred; runs the backward pass"
    assert explain_choice(spec(32), "cuda").reasons["cuda"] == f"runs: it was asked for by name{how}"
    assert explain_choice(spec(32), "triton").reasons["cuda"].endswith(f"'triton' was asked for{how}")
    select.cache_clear()


@needs_extension
@pytest.mark.parametrize(
    ("changes", "capability", "why"),
    [
        ({}, (9, 0), ""),
        ({"batch": 0}, (9, 0), ""),
        ({}, (7, 5), "one launch needs compute capability 8.0, the device has 7.5"),
        ({"dtype": torch.float64}, (9, 0), "no one-launch kernel takes float64"),
        (
            {"height": 33},
            (9, 0),
            "no one-launch kernel takes maps of 33 x 32 in blocks of 16 channels and 16 hidden ones",
        ),
        (
            {"hidden_size": 20},
            (9, 0),
            "no one-launch kernel takes maps of 32 x 32 in blocks of 16 channels and 20 hidden ones",
        ),
        (
            {"channels": 8 * 40},
            (8, 6),
            "one launch would take 266 KiB of shared memory, a CTA of the device has 99",
        ),
    ],
)
def test_the_way_of_a_call(
    cuda: Native, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], capability: tuple[int, int], why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    call = spec(32)._replace(**({"hidden_size": 40} if "channels" in changes else {}), **changes)
    assert cuda.path(call, False) == ("planned" if why else "one-launch", why)


@needs_extension
@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [
        ("float32", "single_forward_kernel<32, 32, 4>", "single_vjp_kernel<32, 32, 4>"),
        ("float16", "single_forward_kernel<32, 32, 4>", "single_vjp_kernel<32, 32, 4>"),
        ("bfloat16", "half_forward_kernel<2, 4, 1>", "single_vjp_kernel<32, 32, 4>"),
    ],
)
def test_the_kernel_of_a_type(dtype: str, forward: str, backward: str) -> None:
    """Only bfloat16's rounding is as coarse as computing in 16 bits; gradients are computed in float32."""
    assert native.EXTENSION is not None
    for kernel, is_backward in ((forward, False), (backward, True)):
        found = native.EXTENSION.cuda_path(dtype, 4, 32, 32, 8, 16, 16, 90, backward=is_backward)
        assert (found["path"], found["kernel"]) == ("one-launch", kernel)


@needs_extension
def test_one_launch_can_be_switched_off(cuda: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Built, "one_launch", lambda self: False)
    assert cuda.path(spec(32), False) == ("planned", "one launch is switched off by set_one_launch")
    assert native.EXTENSION is not None
    with pytest.raises(ValueError, match="cuda_path: expected float64, float32, float16 or bfloat16, got int8"):
        native.EXTENSION.cuda_path("int8", 1, 8, 8, 8, 8, 8, 90)


def test_every_preference_states_its_basis() -> None:
    for row in PREFERENCES:
        assert row.basis == "predicted" or row.basis.startswith("measured on ")
        assert len(row.why) > 20
        assert set(row.order) <= ({"one-launch", "planned", "triton"} if row.device == "cuda" else {row.device})
