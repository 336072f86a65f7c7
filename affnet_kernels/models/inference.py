"""A network prepared for inference: BatchNorm folded into the convolutions, activations computed with them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from affnet_kernels.modules import HOOKS

ONEDNN_NAMES = {nn.ReLU: "relu", nn.SiLU: "swish", nn.GELU: "gelu", nn.Tanh: "tanh", nn.Hardswish: "hardswish"}
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# These operators are the ones that torch.compile uses; they are not part of PyTorch's public interface.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")
)


def fuse_for_inference(model: nn.Module) -> nn.Module:
    """A copy of a model, in eval mode, that computes the same in less time; its parameters take no gradients.

    Wherever an `nn.Sequential` runs a convolution and then a BatchNorm, as in AFFNet and in torchvision's layers, the
    norm is folded into the convolution, together with an activation that follows. On a CPU, in float32, such a layer
    is one call of oneDNN on maps in the channels-last format, in which depthwise convolutions are several times
    faster; bias and activation are applied while the result is in registers. Elsewhere the activation is in place,
    and the memory format is the input's. Layers with hooks or parametrizations, and those used twice, are left alone.

    Args:
        model: any model, on any device; it is left untouched.

    Returns:
        The copy. It can be moved, saved, pickled, and compiled by `torch.compile(fullgraph=True)`.

    Raises:
        ValueError: the model has been through `torch.compile`.
    """
    if type(model).__name__ == "OptimizedModule":  # importing the class would add a second to the package's import
        raise ValueError("fuse_for_inference: expected a model that is not compiled, got one; compile the fused copy")
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in list(_foldable(fused)):
        layer.parent[layer.first] = FusedConv2d(layer.conv, layer.norm, layer.act)
        for index in range(layer.first + 1, layer.first + (2 if layer.act is None else 3)):
            layer.parent[index] = nn.Identity()  # what follows keeps its place, and so its state-dict keys
    return fused


class FusedConv2d(nn.Conv2d):
    """A convolution with a BatchNorm folded in, followed by an activation."""

    def __init__(self, conv: nn.Conv2d, norm: Any, act: nn.Module | None) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.requires_grad_(False)
        self.act = copy.copy(act)
        if hasattr(self.act, "inplace"):
            self.act.inplace = True  # type: ignore[union-attr]
        self._packed: tuple[object, Tensor] | None = None  # the weight in oneDNN's layout, and what it was made from

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, out_channels, H / stride, W / stride]
        if not self._runs_on_onednn(x):
            y = super().forward(x)
            return y if self.act is None else self.act(y)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = self.weight if torch.compiler.is_compiling() else self._packed_weight(x)
        geometry = self.padding, self.stride, self.dilation, self.groups
        name = "none" if self.act is None else ONEDNN_NAMES[type(self.act)]
        variant = self.act.approximate if isinstance(self.act, nn.GELU) else ""
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *geometry, name, [], variant)

    def _runs_on_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 4
            and x.numel() > 0
            and not (x.requires_grad and torch.is_grad_enabled())
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and HAS_ONEDNN
            and not torch.is_autocast_enabled("cpu")  # which would not see this call
            and not torch.compiler.is_exporting()
        )

    def _packed_weight(self, x: Tensor) -> Tensor:
        """The weight as oneDNN wants it for maps of this size; else it would be reordered at every call."""
        made_from = x.shape, self.weight.data_ptr(), self.weight._version
        if self._packed is None or self._packed[0] != made_from:
            geometry = self.padding, self.stride, self.dilation, self.groups
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, x.shape)
            self._packed = made_from, packed
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_packed": None}  # oneDNN's layout can be neither copied nor saved


class _Layer(NamedTuple):
    parent: nn.Sequential
    first: int  # the convolution's place
    conv: nn.Conv2d
    norm: Any  # one of NORMS, with running statistics
    act: nn.Module | None


def _foldable(model: nn.Module) -> Iterator[_Layer]:
    """Every convolution that a BatchNorm follows directly, unless something else would miss one of the two."""
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def plain(module: nn.Module | None) -> bool:
        return not any(getattr(module, hooks) for hooks in HOOKS)

    for parent in model.modules():
        if not isinstance(parent, nn.Sequential) or uses[id(parent)] > 1:
            continue
        if type(parent).forward is not nn.Sequential.forward:
            continue
        children = list(parent)
        for index, (conv, norm) in enumerate(pairwise(children)):
            if (
                type(conv) is nn.Conv2d
                and type(norm) in NORMS
                and norm.running_mean is not None
                and uses[id(conv)] == uses[id(norm)] == 1
                and plain(conv)
                and plain(norm)
            ):
                act = children[index + 2] if index + 2 < len(children) else None
                yield _Layer(parent, index, conv, norm, act if type(act) in ONEDNN_NAMES and plain(act) else None)
