"""Inputs and parameters for every provider: photographs, feature maps of them, and seeded weights."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from affnet_kernels.spec import compute_dtype
from benchmarks.cases import Case

STRIDE = 4  # of the stem, as in the networks themselves


@cache
def photographs() -> Tensor | None:  # [2, 3, 427, 640], in [0, 1]
    """The two photographs that scikit-learn ships; None where it is not installed."""
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
    except ImportError:
        return None
    return torch.stack([torch.tensor(image).permute(2, 0, 1) for image in images]).float() / 255


def source(case: Case) -> str:
    """What `example` makes its values from: "photographs", or "random" where a map is larger than they are."""
    found = photographs()
    fits = found is not None and (case.network or max(case.height, case.width) <= min(found.shape[-2:]))
    return "photographs" if fits else "random"


def example(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:  # [B, C, H, W]
    """The input of a case: images for a network, a feature map for a mixer."""
    return (images if case.network else feature_map)(case, device, seed)


def images(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:  # [B, 3, H, W], in [0, 1]
    """Crops and flips of the photographs, resized as for classification: their shorter side is 8/7 of the crop's."""
    generator = torch.Generator().manual_seed(seed)
    found = photographs()
    if found is None:
        return torch.rand(case.batch, case.channels, case.height, case.width, generator=generator).to(device)
    size = 8 * max(case.height, case.width) / 7
    scale = size / min(found.shape[-2:])
    resized = torch.nn.functional.interpolate(found, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1)
    return torch.stack([_crop(resized, case, 1, generator) for _ in range(case.batch)]).to(device)


def feature_map(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:  # [B, C, H, W]
    """Crops and flips of the photographs, after a convolutional stem with seeded weights, normalised per channel."""
    generator = torch.Generator().manual_seed(seed)
    size = case.batch, case.channels, case.height, case.width
    found = photographs()
    if found is None or source(case) == "random":
        features = torch.randn(size, generator=generator)
    else:
        stride = min(STRIDE, min(found.shape[-2] // case.height, found.shape[-1] // case.width))
        crops = torch.stack([_crop(found, case, stride, generator) for _ in range(case.batch)])
        stem = torch.randn(case.channels, 3, stride + 3, stride + 3, generator=generator)
        mode = "reflect" if min(crops.shape[-2:]) > 2 else "replicate"  # which maps of one row or column allow
        padded = torch.nn.functional.pad(crops, (1, 2, 1, 2), mode=mode)
        features = torch.nn.functional.conv2d(padded, stem, stride=stride)
        deviation, mean = torch.std_mean(features, dim=(0, 2, 3), keepdim=True, correction=0)
        features = (features - mean) / deviation.clamp_min(1e-6)
    return features.to(device=device, dtype=getattr(torch, case.dtype))


def _crop(
    found: Tensor,  # [2, 3, height, width]
    case: Case,
    stride: int,
    generator: torch.Generator,
) -> Tensor:  # [3, H * stride, W * stride]
    height, width = case.height * stride, case.width * stride

    def below(bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=generator))

    image = found[below(len(found))]
    top, left = below(image.shape[1] - height + 1), below(image.shape[2] - width + 1)
    crop = image[:, top : top + height, left : left + width]
    return crop.flip(2) if below(2) else crop


def cotangent(
    x: Tensor,  # [B, C, H, W]
) -> Tensor:  # [B, C, H, W]
    """A seeded dy for the backward pass."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(x.shape, generator=generator).to(x)


def mixer_parameters(case: Case, device: torch.device | str) -> tuple[Tensor, ...]:
    """w1, b1, w2, b2 at scale 1/sqrt(D); at the initial 0.02 the residual would hide an error in the mask."""
    generator = torch.Generator().manual_seed(2)
    K, D = case.blocks, case.channels // case.blocks
    shapes = ((2, K, D, D), (2, K, D), (2, K, D, D), (2, K, D))
    scales = (1 / math.sqrt(D), 0.1) * 2
    dtype = compute_dtype(getattr(torch, case.dtype))
    return tuple(
        (scale * torch.randn(shape, generator=generator)).to(device=device, dtype=dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    )


def dense_parameters(
    case: Case,
    device: torch.device | str,
    *shapes: tuple[int, ...],  # of weights; the fan-in is the product of all axes but the first
) -> tuple[Tensor, ...]:
    """Seeded weights at scale 1/sqrt(fan-in), in the case's dtype."""
    generator = torch.Generator(device).manual_seed(3)
    dtype = getattr(torch, case.dtype)
    return tuple(
        torch.randn(shape, generator=generator, device=device).mul_(math.prod(shape[1:]) ** -0.5).to(dtype)
        for shape in shapes
    )
