"""DeepLabv3, semantic segmentation, on an AFFNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.models.affnet import AFFNet, create_model
from affnet_kernels.models.layers import ConvLayer


class DeepLabv3(nn.Module):
    """DeepLabv3's head on an AFFNet; `deeplabv3` builds both.

    The state dict has the keys of the official implementation.

    Args:
        backbone: becomes `encoder`, and loses its `conv_1x1_exp` and `classifier`. Its `output_stride` is the one of
            the maps that the head sees: 16, or 8 for finer and 32 for coarser ones.
        num_classes: at least 1, the background counted.
        aspp_channels: of each branch of the spatial pyramid.
        rates: dilations of its 3x3 convolutions.
        drop_rate: of the dropout of whole channels before the classifier.
        activation: in the head, a name as in `AFFNet`. A checkpoint does not tell which it was trained with; the
            recipes of MobileViT, from which the official ones grew, have ReLU here and SiLU in the backbone.

    Raises:
        ValueError: an option is not as above.

    Source: Chen et al., arXiv 1706.05587, and the head of that name in microsoft/TokenMixers.
    """

    def __init__(
        self,
        backbone: AFFNet,
        num_classes: int = 21,
        *,
        aspp_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        drop_rate: float = 0.1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        for right, expected, got in (
            (num_classes >= 1, "num_classes >= 1", num_classes),
            (aspp_channels >= 1, "aspp_channels >= 1", aspp_channels),
            (all(rate >= 1 for rate in rates), "rates >= 1", rates),
            (0 <= drop_rate < 1, "0 <= drop_rate < 1", drop_rate),
            (activation in ACTIVATIONS, f"activation to be one of {list(ACTIVATIONS)}", activation),
        ):
            if not right:
                raise ValueError(f"DeepLabv3: expected {expected}, got {got!r}")
        self.num_classes = num_classes
        backbone.prune_intermediate_layers()
        self.encoder = backbone
        aspp = ASPP(backbone.num_features, aspp_channels, rates, drop_rate=drop_rate, activation=activation)
        classifier = ConvLayer(aspp_channels, num_classes, norm=False, bias=True, activation=None)
        self.seg_head = nn.Sequential(
            OrderedDict(aspp=nn.Sequential(OrderedDict(aspp_layer=aspp)), classifier=classifier)
        )

    def forward(
        self,
        images: Tensor,  # [B, in_chans, H, W]
    ) -> Tensor:  # [B, num_classes, H, W]
        """The logits of each pixel's classes.

        Raises:
            ValueError: one image in training, where a BatchNorm takes statistics over one value per image.
        """
        logits = self.seg_head(self.encoder(images))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, dilated 3x3s and the mean of the map side by side, projected by a 1x1.

    Args:
        in_channels: of the maps [B, C, H, W].
        out_channels: of each branch, and of the result.
        rates: dilations of the 3x3s.
        drop_rate: of the dropout of whole channels at the end.
        activation: by name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        drop_rate: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ConvLayer(in_channels, out_channels, activation=activation),
                *(ConvLayer(in_channels, out_channels, 3, dilation=rate, activation=activation) for rate in rates),
                ASPPPooling(in_channels, out_channels, activation=activation),
            ]
        )
        self.project = ConvLayer(len(self.convs) * out_channels, out_channels, activation=activation)
        self.dropout_layer = nn.Dropout2d(drop_rate)

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, out_channels, H, W]
        return self.dropout_layer(self.project(torch.cat([conv(x) for conv in self.convs], dim=1)))


class ASPPPooling(nn.Module):
    """The mean of the map through a 1x1, at every pixel."""

    def __init__(self, in_channels: int, out_channels: int, *, activation: str) -> None:
        super().__init__()
        projection = ConvLayer(in_channels, out_channels, activation=activation)
        self.aspp_pool = nn.Sequential(OrderedDict(global_pool=nn.AdaptiveAvgPool2d(1), conv_1x1=projection))

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, out_channels, H, W]
        try:
            pooled = self.aspp_pool(x)
        except ValueError as error:  # of BatchNorm
            raise ValueError(
                f"DeepLabv3: expected at least 2 images in training, got {x.shape[0]}; one needs the BatchNorm of "
                "seg_head.aspp.aspp_layer.convs[-1] in eval mode"
            ) from error
        return pooled.expand(-1, -1, x.shape[2], x.shape[3])


def deeplabv3(name: str, num_classes: int = 21, **options: Any) -> DeepLabv3:
    """DeepLabv3 on the network of that name, one of `MODELS`.

    Args:
        options: as in `AFFNet`, where `output_stride` is 16 and `img_size` 512 unless given.

    Raises:
        ValueError: there is no such network, or an option is not as in `DeepLabv3` and `AFFNet`.
    """
    return DeepLabv3(create_model(name, **({"output_stride": 16, "img_size": 512} | options)), num_classes)
