"""BatchNorm over the batch of all processes, so that N processes compute what one does; on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with its BatchNorms replaced by synchronised ones: PyTorch's own on CUDA, `SyncBatchNorm2d` elsewhere.

    Parameters, buffers, state-dict keys and values stay the same.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the maps of all processes, weighted by their sizes.

    A process whose batch is empty takes part. Without a process group, or in a group of one, it is `nn.BatchNorm2d`.
    `nn.SyncBatchNorm` does the same on accelerators, and refuses tensors on the CPU.
    """

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            momentum = self.momentum
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if momentum is None:  # the cumulative average
                    momentum = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum or 0.0)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum or 0.0)
        return y


class _Normalise(torch.autograd.Function):
    """The normalised maps, and the mean, the biased variance and the number of values of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, C, H, W]
        weight: Tensor | None,  # [C]
        bias: Tensor | None,  # [C]
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        mean, variance, count = _statistics_of_all(x)
        if count < 2:
            raise ValueError(
                "SyncBatchNorm2d: expected more than 1 value per channel in training, "
                f"got {int(count)} in all processes, {list(x.shape)} in this one"
            )
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, count

    @staticmethod
    def backward(
        ctx: Any,
        dy: Tensor,  # [B, C, H, W]
        *_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
        dx, dscale, dbias = _gradients_for_fixed_statistics(dy, x, scale, mean, variance, ctx.eps)
        sums = torch.stack((dscale, dbias))  # of dy * normalised x, and of dy
        dist.all_reduce(sums)
        # What the statistics add: -(scale / deviation) * (mean of dy + normalised x * mean of dy * normalised x).
        inverse = (variance + ctx.eps).rsqrt()
        slope = -scale * inverse * inverse * sums[0] / ctx.count
        offset = -scale * inverse * sums[1] / ctx.count - slope * mean
        dx += torch.addcmul(_per_channel(offset, x), x, _per_channel(slope, x))
        return dx, None if weight is None else dscale, dbias, None


def _statistics_of_all(
    x: Tensor,  # [B, C, H, W]
) -> tuple[Tensor, Tensor, float]:
    """Mean [C] and biased variance [C] over all processes, in float32 at least, and the values per channel."""
    channels = x.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    own = x.new_zeros(2 * channels + 1, dtype=torch.float64)
    if x.numel():
        # Running statistics to update make the operator return theirs in the same type, not in 16 bits.
        mean, variance = torch.batch_norm_update_stats(
            x, x.new_zeros(channels, dtype=dtype), x.new_zeros(channels, dtype=dtype), 1.0
        )
        own[:channels], own[channels:-1], own[-1] = mean, variance, x.numel() // channels
    gathered = own.new_empty(dist.get_world_size(), own.numel())
    dist.all_gather(list(gathered), own)
    means, variances, counts = gathered.split((channels, channels, 1), dim=1)
    count = float(counts.sum())
    share = counts / max(count, 1)
    mean = (share * means).sum(0)
    # The variance within the processes and between them, which does not cancel as a sum of squares would.
    variance = (share * (variances + (means - mean).square())).sum(0)
    return mean.to(dtype), variance.to(dtype), count


def _gradients_for_fixed_statistics(
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    scale: Tensor,  # [C]
    mean: Tensor,  # [C]
    variance: Tensor,  # [C]
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and bias, were mean and variance constants."""
    if not x.numel():
        return torch.zeros_like(x), torch.zeros_like(scale), torch.zeros_like(scale)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        dy, x, scale, mean, variance, None, None, False, eps, [True, True, True]
    )
    return gradients


def _per_channel(
    values: Tensor,  # [C]
    like: Tensor,  # [B, C, H, W]
) -> Tensor:  # [C, 1, 1]
    return values.to(like.dtype)[:, None, None]
