"""The AFFNet networks: MobileViT's skeleton with AFF blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.models.aff_block import AFFBlock
from affnet_kernels.models.hub import HubMixin
from affnet_kernels.models.layers import NORMS, ConvLayer, InvertedResidual
from affnet_kernels.models.token_mixers import MIXERS

STEM_CHANNELS = 16
STAGES = ("layer_1", "layer_2", "layer_3", "layer_4", "layer_5")
MAX_HEAD_CHANNELS = 960


class AFFNet(nn.Module, HubMixin):
    """An AFFNet classifier; `affnet_et`, `affnet_t` and `affnet` build the published ones.

    The state dict has the keys and shapes of the official checkpoints.

    Args:
        channels: of the five stages `layer_1` to `layer_5`.
        depths: inverted residuals of the first two stages, mixer blocks of the last three.
        expansion: of the inverted residuals outside the AFF blocks.
        fusion: for each of the last three stages, whether its AFF block fuses its input back in.
        num_classes: outputs of the classifier, at least 1; `reset_classifier(0)` removes the classifier.
        in_chans: channels of the images.
        activation: "relu", "silu", "gelu", "tanh" or "identity", in the mixers and everywhere else. A checkpoint does
            not tell which it was trained with; the released recipe of AFFNet-ET says SiLU.
        norm: inside the AFF blocks, "layer_norm_2d" (GroupNorm of one group), "batch_norm_2d", or "layer_norm" (over
            the channels of each pixel). Everywhere else it is BatchNorm.
        output_stride: 32; 16 or 8 keep larger maps for dense prediction, with dilated convolutions.
        drop_rate: of the dropout before the classifier.
        drop_path_rate: of stochastic depth in the last mixer block; rises linearly from 0. Not in the official code.
        mixer: "fused", "reference" (the same in eager PyTorch), "attention", "large-kernel" or "mlp".
        img_size: H and W of the images, or one number for both, which only "large-kernel" and "mlp" depend on.

    Raises:
        ValueError: an option is not as above.

    Source: Huang et al., ICCV 2023, arXiv 2307.14008, and its official implementation microsoft/TokenMixers.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int] = (1, 3, 2, 4, 3),
        expansion: int = 4,
        fusion: Sequence[bool] = (True, True, True),
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        activation: str = "silu",
        norm: str = "layer_norm_2d",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mixer: str = "fused",
        img_size: int | Sequence[int] = 256,
    ) -> None:
        super().__init__()
        _check_options(num_classes, in_chans, activation, norm, output_stride, drop_rate, drop_path_rate, mixer)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        # What builds this network again, in JSON's types; reset_classifier keeps num_classes up to date.
        self.options: dict[str, Any] = {
            "channels": list(channels),
            "depths": list(depths),
            "expansion": expansion,
            "fusion": list(fusion),
            "in_chans": in_chans,
            "activation": activation,
            "norm": norm,
            "output_stride": output_stride,
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            "mixer": mixer,
            "img_size": [height, width],
        }
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

        self.conv_1 = ConvLayer(in_chans, STEM_CHANNELS, 3, stride=2, activation=activation)
        previous, reduction, dilation = STEM_CHANNELS, 2, 1
        mixer_depth = sum(depths[2:])
        rates = [drop_path_rate * i / max(1, mixer_depth - 1) for i in range(mixer_depth)]
        for index, name in enumerate(STAGES):
            # The stage's first convolution has the dilation in force before the stage; the mixer blocks have none.
            before, stride = dilation, 1 if index == 0 else 2
            if reduction * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reduction *= stride

            def residual(inputs: int, outputs: int, stride: int, dilation: int) -> InvertedResidual:
                return InvertedResidual(
                    inputs, outputs, expansion, stride=stride, dilation=dilation, activation=activation
                )

            stage = nn.Sequential(residual(previous, channels[index], stride, before))
            if index < 2:
                for _ in range(depths[index] - 1):
                    stage.append(residual(channels[index], channels[index], 1, dilation))
            else:
                stage.append(
                    AFFBlock(
                        channels[index],
                        depths[index],
                        fusion=fusion[index - 2],
                        mixer=mixer,
                        map_size=(-(-height // reduction), -(-width // reduction)),
                        activation=activation,
                        norm=norm,
                        drop_path_rates=[rates.pop(0) for _ in range(depths[index])],
                    )
                )
            self.add_module(name, stage)
            self.feature_info.append({"num_chs": channels[index], "reduction": reduction, "module": name})
            previous = channels[index]

        self.num_features = self.head_hidden_size = min(4 * previous, MAX_HEAD_CHANNELS)
        self.conv_1x1_exp = ConvLayer(previous, self.num_features, activation=activation)
        self.classifier = nn.Sequential()
        self.reset_classifier(num_classes)

    def forward(
        self,
        x: Tensor,  # [B, in_chans, H, W], at least 32 x 32
    ) -> Tensor:  # [B, num_classes]
        """The logits of a batch of images."""
        return self.forward_head(self.forward_features(x))

    def forward_features(
        self,
        x: Tensor,  # [B, in_chans, H, W]
    ) -> Tensor:  # [B, num_features, H / 32, W / 32]
        """The feature map that the classifier pools."""
        x = self.conv_1(x)
        for name in STAGES:
            x = self._stage(name, x)
        return self.conv_1x1_exp(x)

    def forward_head(
        self,
        x: Tensor,  # [B, num_features, H / 32, W / 32]
        pre_logits: bool = False,
    ) -> Tensor:  # [B, num_classes], or [B, num_features]
        """Global average pool and, unless `pre_logits`, the classifier."""
        x = x.mean((2, 3))
        return x if pre_logits else self.classifier(x)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an Identity if it was removed."""
        return getattr(self.classifier, "fc", nn.Identity())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier for `num_classes` classes, or none for 0; the pool is always the mean ("avg")."""
        if num_classes < 0:
            raise ValueError(f"reset_classifier: expected num_classes >= 0, got {num_classes}")
        if global_pool not in (None, "avg"):
            raise ValueError(f'reset_classifier: expected global_pool to be None or "avg", got {global_pool!r}')
        self.num_classes = self.options["num_classes"] = num_classes
        self.classifier = nn.Sequential()
        if not num_classes:
            return
        weight = self.conv_1x1_exp.block[0].weight
        if self.drop_rate:
            self.classifier.add_module("dropout", nn.Dropout(self.drop_rate))
        fc = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.xavier_uniform_(fc.weight)
        nn.init.zeros_(fc.bias)
        self.classifier.add_module("fc", fc)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping what is inside it."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort the parameters into layers, by timm's conventions: for learning rates by depth."""
        blocks = r"^layer_(\d+)" if coarse else r"^layer_(\d+)\.(\d+)(?:\.global_rep\.(\d+))?"
        return {"stem": r"^conv_1\.", "blocks": [(blocks, None), (r"^conv_1x1_exp", (99999,))]}

    def _stage(
        self,
        name: str,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:
        stage = getattr(self, name)
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(
                stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _kept_statistics(stage))
            )
        return stage(x)


@contextmanager
def _kept_statistics(stage: nn.Module) -> Iterator[None]:
    """Recompute without a second update of the running statistics."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, kept in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = kept


def _check_options(
    num_classes: int,
    in_chans: int,
    activation: str,
    norm: str,
    output_stride: int,
    drop_rate: float,
    drop_path_rate: float,
    mixer: str,
) -> None:
    def expect(right: bool, expected: str, got: object) -> None:
        if not right:
            raise ValueError(f"AFFNet: expected {expected}, got {got!r}")

    expect(num_classes >= 1, "num_classes >= 1", num_classes)
    expect(in_chans >= 1, "in_chans >= 1", in_chans)
    expect(activation in ACTIVATIONS, f"activation to be one of {list(ACTIVATIONS)}", activation)
    expect(norm in NORMS, f"norm to be one of {list(NORMS)}", norm)
    expect(output_stride in (8, 16, 32), "output_stride to be 32, 16 or 8", output_stride)
    expect(0 <= drop_rate < 1, "0 <= drop_rate < 1", drop_rate)
    expect(0 <= drop_path_rate < 1, "0 <= drop_path_rate < 1", drop_path_rate)
    expect(mixer in MIXERS, f"mixer to be one of {list(MIXERS)}", mixer)


def affnet_et(**options: Any) -> AFFNet:
    """AFFNet-ET: 1.4 M parameters, 0.36 G multiply-adds at 256 x 256; options as in `AFFNet`."""
    return AFFNet((32, 48, 64, 104, 144), expansion=2, **options)


def affnet_t(**options: Any) -> AFFNet:
    """AFFNet-T: 2.7 M parameters, 0.79 G multiply-adds at 256 x 256; options as in `AFFNet`."""
    return AFFNet((32, 48, 96, 160, 192), **options)


def affnet(**options: Any) -> AFFNet:
    """AFFNet: 5.6 M parameters, 1.46 G multiply-adds at 256 x 256; options as in `AFFNet`."""
    return AFFNet((32, 64, 128, 256, 320), **options)


def affnet_base(**options: Any) -> AFFNet:
    """The unpublished base network of the official code: 17.2 M parameters; options as in `AFFNet`."""
    return AFFNet((64, 128, 256, 512, 640), fusion=(True, False, False), **options)


def affnet_large(**options: Any) -> AFFNet:
    """The unpublished large network of the official code: 46.1 M parameters; options as in `AFFNet`."""
    return AFFNet((64, 128, 256, 512, 768), (2, 6, 4, 18, 6), fusion=(True, False, False), **options)


MODELS: dict[str, Callable[..., AFFNet]] = {
    build.__name__: build for build in (affnet_et, affnet_t, affnet, affnet_base, affnet_large)
}


def create_model(name: str, **options: Any) -> AFFNet:
    """The network of that name, one of `MODELS`, with options as in `AFFNet`.

    Raises:
        ValueError: there is no such network, or an option is not as in `AFFNet`.
    """
    if name not in MODELS:
        raise ValueError(f"create_model: expected one of {list(MODELS)}, got {name!r}")
    return MODELS[name](**options)
