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
        self.global_pool = "avg"
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
        self.conv_1x1_exp: nn.Module = ConvLayer(previous, self.num_features, activation=activation)
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
    ) -> Tensor:  # [B, num_classes], or [B, num_features]; unpooled after reset_classifier(0, "")
        """Global average pool and, unless `pre_logits`, the classifier."""
        if self.global_pool:
            x = x.mean((2, 3))
        return x if pre_logits else self.classifier(x)

    def forward_intermediates(
        self,
        x: Tensor,  # [B, in_chans, H, W]
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after some stages, by timm's conventions.

        Args:
            indices: of the five stages, negative ones from the end; a number means the last so many, None all.
            norm: means nothing here, where no norm follows the stages.
            stop_early: after the last stage of `indices`.
            output_fmt: "NCHW".
            intermediates_only: leave out the first of the returned pair.

        Returns:
            what `forward_features` returns (if stopped early, the last map), and the list of maps in order.

        Raises:
            ValueError: there is no such stage, or another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'forward_intermediates: expected output_fmt to be "NCHW", got {output_fmt!r}')
        taken = _stage_indices("forward_intermediates", indices)
        last = max(taken) if stop_early else len(STAGES) - 1
        maps = []
        x = self.conv_1(x)
        for index, name in enumerate(STAGES[: last + 1]):
            x = self._stage(name, x)
            if index in taken:
                maps.append(x)
        if intermediates_only:
            return maps
        return (x if last < len(STAGES) - 1 else self.conv_1x1_exp(x)), maps

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for `indices`, and return them counted from the start.

        `prune_norm` means nothing here. The head goes with the last stage, or where `prune_head` says so.
        """
        taken = _stage_indices("prune_intermediate_layers", indices)
        last = max(taken)
        for name in STAGES[last + 1 :]:
            self.add_module(name, nn.Identity())
        if prune_head or last < len(STAGES) - 1:
            self.conv_1x1_exp = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an Identity if it was removed."""
        return getattr(self.classifier, "fc", nn.Identity())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier for `num_classes` classes, or none for 0; without one, `global_pool` may be ""."""
        if num_classes < 0:
            raise ValueError(f"reset_classifier: expected num_classes >= 0, got {num_classes}")
        if global_pool not in (None, "avg") and (global_pool or num_classes):
            expected = 'None or "avg"' if num_classes else 'None, "avg" or ""'
            raise ValueError(f"reset_classifier: expected global_pool to be {expected}, got {global_pool!r}")
        self.num_classes = self.options["num_classes"] = num_classes
        if num_classes:
            self.global_pool = "avg"
        elif global_pool is not None:
            self.global_pool = global_pool
        self.classifier = nn.Sequential()
        if num_classes:
            if self.drop_rate:
                self.classifier.add_module("dropout", nn.Dropout(self.drop_rate))
            like = next(self.parameters())
            fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)
            self.classifier.add_module("fc", fc)
        self.classifier.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping what is inside it."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort the parameters into layers, by timm's conventions: for learning rates by depth."""
        with_previous = (99999,)  # timm's number for that
        blocks = [
            (r"^layer_(\d+)\.(\d+)\.global_rep\.(\d+)", None),
            (r"^layer_(\d+)\.(\d+)\.(?:conv_proj|fusion)", with_previous),
            (r"^layer_(\d+)\.(\d+)", None),
        ]
        if coarse:
            blocks = [(r"^layer_(\d+)", None)]
        return {"stem": r"^conv_1\.", "blocks": [*blocks, (r"^conv_1x1_exp", with_previous)]}

    def _stage(
        self,
        name: str,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:
        stage = getattr(self, name)
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # which recomputes values, not updates
                return checkpoint(stage, x, use_reentrant=False)
            return checkpoint(
                stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _kept_statistics(stage))
            )
        return stage(x)


def _stage_indices(function: str, indices: int | Sequence[int] | None) -> list[int]:
    """Stages counted from the start; of a number the last so many, of None all."""
    count = len(STAGES)
    if indices is None or isinstance(indices, int):
        taken = list(range(count))[-(count if indices is None else indices) :]
        right = indices is None or 1 <= indices <= count
    else:
        taken = [index + count if index < 0 else index for index in indices]
        right = bool(taken) and all(0 <= index < count for index in taken)
    if not right:
        raise ValueError(f"{function}: expected up to {count} stages, or their indices below {count}, got {indices}")
    return taken


@contextmanager
def _kept_statistics(stage: nn.Module) -> Iterator[None]:
    """Recompute without a second update of the running statistics."""
    norms = [module for module in stage.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]
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
