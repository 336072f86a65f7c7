"""The official mixer, written anew from its description, and other modules with the same parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AFNO2D_channelfirst(nn.Module):
    """The adaptive frequency filter under the class name that many repositories have copied."""

    def __init__(
        self,
        hidden_size: int,
        num_blocks: int = 8,
        act: type[nn.Module] = nn.ReLU,
        hidden_size_factor: int = 1,
        sparsity_threshold: float = 0.03,
        scale: float = 0.3,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.sparsity_threshold = sparsity_threshold
        self.num_blocks = num_blocks
        self.block_size = hidden_size // num_blocks
        self.hard_thresholding_fraction = 1
        self.hidden_size_factor = hidden_size_factor
        self.scale = scale
        K, D, Dh = num_blocks, self.block_size, self.block_size * hidden_size_factor
        self.w1 = nn.Parameter(scale * torch.randn(2, K, D, Dh))
        self.b1 = nn.Parameter(scale * torch.randn(2, K, Dh))
        self.w2 = nn.Parameter(scale * torch.randn(2, K, Dh, D))
        self.b2 = nn.Parameter(scale * torch.randn(2, K, D))
        self.act = act()
        self.act2 = act()

    def spectrum_and_perceptron(self, x: Tensor) -> tuple[Tensor, Tensor]:  # each [B, K, D, H, F], complex
        X = torch.fft.rfft2(x.float(), norm="ortho").unflatten(1, (self.num_blocks, self.block_size))

        def layer(re: Tensor, im: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            def product(a: Tensor, part: int) -> Tensor:
                return torch.einsum("bkihw,kio->bkohw", a, w[part].float())

            b = b.float()[..., None, None]
            return product(re, 0) - product(im, 1) + b[0], product(im, 0) + product(re, 1) + b[1]

        re, im = layer(X.real, X.imag, self.w1, self.b1)
        re, im = layer(self.act(re), self.act2(im), self.w2, self.b2)
        shrunk = (F.softshrink(part, self.sparsity_threshold) for part in (re, im))
        return X, torch.complex(*shrunk)

    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        X, M = self.spectrum_and_perceptron(x)
        return torch.fft.irfft2((M * X).flatten(1, 2), s=x.shape[-2:], norm="ortho").to(x.dtype) + x


class AFNO2D(AFNO2D_channelfirst):
    """The Adaptive Fourier Neural Operator's mixer: no product with the spectrum, and channels last."""

    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:  # [B, H, W, C]
        last = x.movedim(-1, 1)
        _, O2 = self.spectrum_and_perceptron(last)
        columns = last.shape[-2] // 2 + 1  # the published code keeps no more columns than this, however wide the map
        O2[..., columns:] = 0
        y = torch.fft.irfft2(O2.flatten(1, 2), s=last.shape[-2:], norm="ortho").to(x.dtype) + last
        return y.movedim(1, -1)


class ChannelsFirstAFNO(AFNO2D_channelfirst):
    """AFNO on [B, C, H, W]."""

    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        _, O2 = self.spectrum_and_perceptron(x)
        return torch.fft.irfft2(O2.flatten(1, 2), s=x.shape[-2:], norm="ortho").to(x.dtype) + x


class ChannelsLastFilter(AFNO2D_channelfirst):
    """The adaptive frequency filter on [B, H, W, C]."""

    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class HalfFilter(AFNO2D_channelfirst):
    """Another operator that nobody has a name for."""

    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        return super().forward(x) * 0.5


class NaNFilter(AFNO2D_channelfirst):
    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        return super().forward(x) * float("nan")


class Stage(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 16)
        self.filter = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.filter(self.norm(x)) + x


def make_model(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        Stage(AFNO2D_channelfirst(16, **options)),
        Stage(AFNO2D_channelfirst(16, 4, **options)),
    )
