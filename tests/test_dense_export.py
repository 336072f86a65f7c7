"""DeepLabv3 and SSDLite for runtimes without an FFT: the exportable forms and the ONNX files give the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from affnet_kernels.models import AFFNet, DeepLabv3, SSDLite, deeplabv3, ssdlite
from tests.networks import seeded_state_dict

export = pytest.importorskip("affnet_kernels.export", reason="affnet_kernels.export is not in this version")

BOUND = 1e-4
DENSE: dict[str, Callable[[AFFNet], nn.Module]] = {
    "DeepLabv3": lambda backbone: DeepLabv3(backbone, 5, aspp_channels=12),
    "SSDLite": lambda backbone: SSDLite(backbone, 5),
}


def seeded(model: nn.Module) -> nn.Module:
    """Weights for which the mixers matter."""
    model.load_state_dict(seeded_state_dict(model))
    return model.eval()


@pytest.mark.parametrize("size", [224, 256, 320, 512])
@pytest.mark.parametrize("build", [deeplabv3, ssdlite])
def test_the_exportable_form_gives_the_same(build: Callable[[str], nn.Module], size: int) -> None:
    model = seeded(build("affnet_et"))
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = tree_leaves(export.to_exportable(model, size=size)(images))
        for got, expected in zip(outputs, tree_leaves(model(images)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize(("kind", "size"), [("DeepLabv3", 512), ("SSDLite", 320)])
def test_the_onnx_file_gives_the_same(kind: str, size: int, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    backbone = AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2, output_stride=16 if kind == "DeepLabv3" else 32)
    exported = export.export_onnx(seeded(DENSE[kind](backbone)), tmp_path / "dense.onnx", size=size)
    assert exported.error <= BOUND  # of batches of 1 and 3
    assert not {"DFT", "STFT"} & set(exported.operators)
