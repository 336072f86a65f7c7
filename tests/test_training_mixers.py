"""The fused mixer and the reference train the same network: their loss curves are one curve."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from affnet_kernels.models import create_model
from affnet_kernels.modules import AFFMixer
from affnet_kernels.training import Recipe, Settings, logs, train

STEPS, BATCH, SIZE, CLASSES, RATE = 5, 4, 96, 1000, 0.05
PERTURBATION = 1e-7  # of the inputs of two reference runs, whose curves tell what rounding alone does
SEEDS = 3


@cache
def curve(
    mixer: str,
    activation: str,
    dtype: torch.dtype = torch.float32,
    *,
    masks: bool = False,
    perturbed_by: int | None = None,
) -> Tensor:
    """The losses of AFFNet-ET in some steps of SGD on noise.

    Its weights are the official initial ones, whose masks are nearly zero; with `masks` these are as large as the
    residual.
    """
    torch.manual_seed(0)
    model = create_model("affnet_et", num_classes=CLASSES, mixer=mixer, activation=activation, img_size=SIZE)
    for module in model.modules():
        if masks and isinstance(module, AFFMixer):
            torch.nn.init.normal_(module.w1, std=module.w1.shape[2] ** -0.5)
            torch.nn.init.normal_(module.w2, std=module.w2.shape[2] ** -0.5)
    model.to(dtype)
    images = torch.randn(STEPS, BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if perturbed_by is not None:
        generator = torch.Generator().manual_seed(perturbed_by)
        images += PERTURBATION * torch.randn(images.shape, generator=generator)
    labels = torch.arange(STEPS * BATCH).view(STEPS, BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for batch, targets in zip(images.to(dtype), labels, strict=True):
        loss = F.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().double())
    return torch.stack(losses)


def distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b) / b).abs().max())


def test_float64_and_the_whole_recipe(tmp_path: Path) -> None:
    """The digits' recipe itself, with AdamW, clipping, smoothing and average, in float64: to 1e-10."""
    recipe = Recipe.load("digits").replace(size=64, epochs=1, batch=8, limit=40)
    torch.set_default_dtype(torch.float64)
    try:
        for mixer in ("fused", "reference"):
            train(recipe.replace(mixer=mixer), Settings(tmp_path / mixer, log_every=1, progress=False))
    finally:
        torch.set_default_dtype(torch.float32)
    fused, reference = (
        torch.tensor([float(row["loss"]) for row in logs.read_rows(tmp_path / mixer / logs.STEPS)], dtype=torch.float64)
        for mixer in ("fused", "reference")
    )
    assert len(fused) == 5
    assert distance(fused, reference) < 1e-10


@pytest.mark.parametrize(("activation", "masks"), [("silu", False), ("silu", True), ("relu", False)])
def test_float64(activation: str, masks: bool) -> None:
    fused, reference = (curve(mixer, activation, torch.float64, masks=masks) for mixer in ("fused", "reference"))
    assert distance(fused, reference) < 1e-10


def test_float32_with_silu() -> None:
    """With larger masks, or on photographs, rounding splits the reference's own curves by 1e-4 and more."""
    assert distance(curve("fused", "silu"), curve("reference", "silu")) < 1e-5


def test_float32_with_relu() -> None:
    """Rounding splits ReLU's curves: by no more than those of reference runs on inputs that differ by 1e-7."""
    fused, reference = curve("fused", "relu"), curve("reference", "relu")
    spread = max(distance(curve("reference", "relu", perturbed_by=seed), reference) for seed in range(SEEDS))
    assert distance(fused[:1], reference[:1]) < 1e-6  # nothing has been trained yet
    assert distance(fused, reference) < 2 * spread


def test_the_curves_tell_the_masks() -> None:
    """Without them the curve is far from where the bound in float64 puts it."""
    masked, unmasked = (curve("reference", "silu", torch.float64, masks=masks) for masks in (True, False))
    assert distance(masked, unmasked) > 1e-3
