"""The mixer for one map size as six convolutions of 1x1 and operations that every runtime has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels.activations import activation_named
from affnet_kernels.export.dft import along_height, along_width
from affnet_kernels.modules import AFFMixer
from affnet_kernels.spec import compute_dtype


class ExportableMixer(nn.Module):
    """What an `AFFMixer` computes on maps of one size, without an FFT, complex numbers or a custom operator.

    Matrix products along H and W and over the channels of a block are all convolutions of 1x1, the operation that
    runtimes do best: the axis that is transformed stands where channels do. Real and imaginary parts are channels too.
    No tensor has more than four axes. The matrices and the mask's weights belong to the module, so they follow `.to`.

    Args:
        mixer: where the parameters come from; they are copied.
        size: H and W of the maps.
    """

    analysis_w: Tensor  # [(r, F), W, 1, 1]
    analysis_h: Tensor  # [(r, H), (r, H), 1, 1]
    synthesis_h: Tensor  # [(r, H), (r, H), 1, 1]
    synthesis_w: Tensor  # [W, (r, F), 1, 1]
    w1: nn.Parameter  # [(K, Dh, r), (D, r), 1, 1]
    b1: nn.Parameter  # [(K, Dh, r)]
    w2: nn.Parameter  # [(K, D, r), (Dh, r), 1, 1]
    b2: nn.Parameter  # [(K, D, r)]

    def __init__(
        self,
        mixer: AFFMixer,
        size: tuple[int, int],  # H, W
    ) -> None:
        super().__init__()
        self.channels, self.blocks = mixer.hidden_size, mixer.num_blocks
        self.height, self.width = size
        self.sparsity_threshold = mixer.sparsity_threshold
        self.activation = mixer.activation
        dtype, device = compute_dtype(mixer.w1.dtype), mixer.w1.device
        analysis_w, synthesis_w = along_width(self.width)
        analysis_h = along_height(self.height)
        matrices = {
            "analysis_w": analysis_w,
            "analysis_h": analysis_h,
            "synthesis_h": analysis_h.T,
            "synthesis_w": synthesis_w,
        }
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.to(device, dtype).contiguous()[:, :, None, None])
        needed = mixer.w1.requires_grad
        self.w1, self.w2 = (nn.Parameter(_real_weight(weight).to(dtype), needed) for weight in (mixer.w1, mixer.w2))
        self.b1, self.b2 = (nn.Parameter(_real_bias(bias).to(dtype), needed) for bias in (mixer.b1, mixer.b2))

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
        spatial_size: object = None,
    ) -> Tensor:  # [B, C, H, W]
        """Mix the tokens of `x`; `spatial_size` is accepted and ignored, as by `AFFMixer`."""
        C, H, W = self.channels, self.height, self.width
        if x.dim() != 4 or tuple(x.shape[1:]) != (C, H, W):
            raise ValueError(
                f"ExportableMixer: expected maps [B, {C}, {H}, {W}], got {list(x.shape)}; "
                "make another exportable model for images of another size"
            )
        if self.w1.dtype not in (x.dtype, compute_dtype(x.dtype)):
            raise TypeError(f"ExportableMixer: expected maps for weights of {self.w1.dtype}, got {x.dtype}")
        columns = W // 2 + 1  # F
        frequencies = H * columns  # N
        wide = x if x.dtype == self.w1.dtype else x.to(self.w1.dtype)  # a cast of its own type would be exported too

        rows = wide.permute(0, 2, 3, 1).reshape(-1, W, 1, C)  # [(B, H), W, 1, C]
        rows = F.conv2d(rows, self.analysis_w).reshape(-1, H, 2, columns * C)  # [B, H, r, (F, C)]
        planes = F.conv2d(rows.transpose(1, 2).reshape(-1, 2 * H, columns, C), self.analysis_h)  # [B, (r, H), F, C]
        X = planes.reshape(-1, 2 * frequencies, C).transpose(1, 2)  # [B, C, (r, N)]

        hidden = F.conv2d(X.reshape(-1, 2 * C, 1, frequencies), self.w1, self.b1, groups=self.blocks)
        P = F.conv2d(activation_named(self.activation).value(hidden), self.w2, self.b2, groups=self.blocks)
        threshold = min(self.sparsity_threshold, torch.finfo(P.dtype).max)
        M = (P - P.clamp(-threshold, threshold)).reshape(-1, C, 2 * frequencies)  # soft-shrink

        # slices, as XNNPACK's delegate takes no chunks
        Mr, Mi, Xr, Xi = M[..., :frequencies], M[..., frequencies:], X[..., :frequencies], X[..., frequencies:]
        Y = torch.cat((Mr * Xr - Mi * Xi, Mr * Xi + Mi * Xr), dim=2)  # [B, C, (r, N)]

        planes = F.conv2d(Y.transpose(1, 2).reshape(-1, 2 * H, columns, C), self.synthesis_h)  # [B, (r, H), F, C]
        rows = planes.reshape(-1, 2, H, columns * C).transpose(1, 2).reshape(-1, 2 * columns, 1, C)
        y = F.conv2d(rows, self.synthesis_w).reshape(-1, H, W, C).permute(0, 3, 1, 2)
        return y + x if x.dtype == self.w1.dtype else (y + wide).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, height={self.height}, width={self.width}, num_blocks={self.blocks}, "
            f"sparsity_threshold={self.sparsity_threshold}, activation={self.activation!r}"
        )


def _real_weight(
    weight: Tensor,  # [2, K, I, O]
) -> Tensor:  # [(K, O, r), (I, r), 1, 1]
    """Complex matrices as real ones: each entry a + ib becomes the matrix of the product with it."""
    real, imaginary = weight.detach().transpose(-1, -2)
    rows = torch.stack((real, -imaginary), dim=-1), torch.stack((imaginary, real), dim=-1)
    return torch.stack(rows, dim=2).flatten(3, 4).flatten(0, 2)[:, :, None, None]


def _real_bias(
    bias: Tensor,  # [2, K, O]
) -> Tensor:  # [(K, O, r)]
    return bias.detach().permute(1, 2, 0).flatten()
