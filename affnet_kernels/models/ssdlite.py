"""SSDLite, object detection, on an AFFNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.models.affnet import AFFNet, create_model
from affnet_kernels.models.boxes import batched_nms, decode_boxes
from affnet_kernels.models.layers import ConvLayer, SeparableConv


class Level(NamedTuple):
    """A map that the heads see."""

    stride: int  # of its pixels; -1 for the map of one pixel
    channels: int  # that its head, and the extra layer that makes the map, project to
    ratios: tuple[int, ...]  # of the sides of the anchors that are not squares


LEVELS = (
    Level(16, 512, (2, 3)),
    Level(32, 256, (2, 3)),
    Level(64, 256, (2, 3)),
    Level(128, 128, (2, 3)),
    Level(256, 128, (2, 3)),
    Level(-1, 64, (2,)),
)
SMALLEST, LARGEST = 0.1, 1.05  # sides of the anchors, as parts of the image's


class Detections(NamedTuple):
    """What was found in an image, the most certain first."""

    boxes: Tensor  # [N, 4]: x1, y1, x2, y2 as parts of W and H; they may reach beyond the image
    scores: Tensor  # [N], probabilities
    labels: Tensor  # [N], 1 to num_classes - 1


class SSDLite(nn.Module):
    """SSD's heads, of separable convolutions, on an AFFNet; `ssdlite` builds both.

    The state dict has the keys of the official implementation.

    Args:
        backbone: of output stride 32; becomes `encoder`, and loses its `conv_1x1_exp` and `classifier`.
        num_classes: at least 2, the background counted, which is class 0.
        activation: in the heads and extra layers, a name as in `AFFNet`. A checkpoint does not tell which it was
            trained with; the recipes of MobileViT, from which the official ones grew, have ReLU here and SiLU in the
            backbone.

    Raises:
        ValueError: an option is not as above.

    Source: Liu et al., arXiv 1512.02325; Sandler et al., arXiv 1801.04381; the detector "ssd" of microsoft/TokenMixers.
    """

    def __init__(self, backbone: AFFNet, num_classes: int = 81, *, activation: str = "relu") -> None:
        super().__init__()
        stride = backbone.feature_info[-1]["reduction"]
        for right, expected, got in (
            (stride == 32, "a backbone of output_stride 32", stride),
            (num_classes >= 2, "num_classes >= 2, the background counted", num_classes),
            (activation in ACTIVATIONS, f"activation to be one of {list(ACTIVATIONS)}", activation),
        ):
            if not right:
                raise ValueError(f"SSDLite: expected {expected}, got {got!r}")
        self.num_classes = num_classes
        backbone.prune_intermediate_layers()
        self.encoder = backbone
        self.extra_layers = nn.ModuleDict()
        self.ssd_heads = nn.ModuleList()
        channels = [info["num_chs"] for info in backbone.feature_info[-2:]]
        for level in LEVELS[2:]:
            extra: nn.Module = SeparableConv(channels[-1], level.channels, stride=2, activation=activation)
            if level.stride == -1:
                extra = nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), ConvLayer(channels[-1], level.channels, norm=False, activation=activation)
                )
            self.extra_layers[f"os_{level.stride}"] = extra
            channels.append(level.channels)
        for inputs, level in zip(channels, LEVELS, strict=True):
            self.ssd_heads.append(SSDHead(inputs, level, num_classes, activation=activation))
        for module in (*self.extra_layers.modules(), *self.ssd_heads.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        images: Tensor,  # [B, in_chans, H, W]
    ) -> tuple[Tensor, Tensor]:  # [B, A, num_classes], [B, A, 4]
        """The logits of the classes, and the offsets of the boxes, at each of the A anchors of `anchors((H, W))`.

        Raises:
            ValueError: one image of at most 256 x 256 in training, where a BatchNorm takes statistics over one pixel.
        """
        maps = cast("list[Tensor]", self.encoder.forward_intermediates(images, 2, intermediates_only=True))
        try:
            for extra in self.extra_layers.values():
                maps.append(extra(maps[-1]))
        except ValueError as error:  # of BatchNorm
            raise ValueError(
                f"SSDLite: expected at least 2 images in training, or H or W above 256, got {list(images.shape)}"
            ) from error
        predictions = torch.cat([head(x) for head, x in zip(self.ssd_heads, maps, strict=True)], dim=1)
        return predictions[..., 4:], predictions[..., :4]

    @staticmethod
    def anchors(
        size: int | Sequence[int],
        device: torch.device | str | None = None,
    ) -> Tensor:  # [A, 4]
        """The boxes that the predictions for images of a size start from: 3,232 for 320.

        Args:
            size: H and W, or one number for both.
            device: of the result.

        Returns:
            Centre and size x, y, w, h as parts of W and H, float32. Sizes are at most 1.

        Raises:
            ValueError: the size is not as above.
        """
        pixels = (size, size) if isinstance(size, int) else tuple(size)
        if len(pixels) != 2 or min(pixels) < 1:
            raise ValueError(f"anchors: expected size as H and W, both >= 1, got {size}")
        step = (LARGEST - SMALLEST) / len(LEVELS)
        anchors = []
        for index, level in enumerate(LEVELS):
            small, next_small = SMALLEST + index * step, SMALLEST + (index + 1) * step
            large = math.sqrt(small * next_small)
            sides = [(small, small), (large, large)]
            for root in map(math.sqrt, level.ratios):
                sides += [(small * root, small / root), (small / root, small * root)]
            rows, columns = (1 if level.stride == -1 else -(-count // level.stride) for count in pixels)
            y, x = ((torch.arange(count, device=device) + 0.5) / count for count in (rows, columns))
            shape = torch.tensor(sides, device=device).clamp(max=1)  # [n, 2]
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [rows, columns, 2]
            both = centre[:, :, None].expand(-1, -1, len(shape), -1), shape.expand(rows, columns, -1, -1)
            anchors.append(torch.cat(both, dim=-1).flatten(0, 2))
        return torch.cat(anchors)

    @staticmethod
    @torch.no_grad()
    def detections(
        scores: Tensor,  # [B, A, num_classes]
        offsets: Tensor,  # [B, A, 4]
        size: int | Sequence[int],
        *,
        min_score: float = 0.01,
        max_overlap: float = 0.5,
        top_k: int = 400,
        max_detections: int = 200,
    ) -> list[Detections]:
        """The objects that a prediction means, after non-maximum suppression; the defaults are the official ones.

        Args:
            scores, offsets: of `forward`.
            size: of the images, as in `anchors`.
            min_score: probability below which a box is dropped.
            max_overlap: intersection over union above which the less certain of two boxes of a class is dropped.
            top_k: boxes of a class that suppression begins with.
            max_detections: of an image.

        Returns:
            One for each image.

        Raises:
            ValueError: the predictions are not for images of that size.
        """
        anchors = SSDLite.anchors(size, offsets.device)
        if offsets.shape[1] != len(anchors):
            raise ValueError(
                f"detections: expected predictions at the {len(anchors)} anchors of size {size}, got {offsets.shape[1]}"
            )
        boxes = decode_boxes(offsets, anchors)
        found = []
        for image, probabilities in zip(boxes, scores.to(boxes.dtype).softmax(-1), strict=True):
            # [k, num_classes - 1] each: the background is no object.
            top, anchor = probabilities[:, 1:].topk(min(top_k, len(image)), dim=0)
            taken = top > min_score
            label = torch.nonzero(taken)[:, 1] + 1
            candidates, certainty = image[anchor[taken]], top[taken]
            keep = batched_nms(candidates, certainty, label, max_overlap)[:max_detections]
            found.append(Detections(candidates[keep], certainty[keep], label[keep]))
        return found


class SSDHead(nn.Module):
    """The predictions at the anchors of one map."""

    def __init__(self, in_channels: int, level: Level, num_classes: int, *, activation: str) -> None:
        super().__init__()
        self.outputs = 4 + num_classes  # of an anchor
        outputs = (2 + 2 * len(level.ratios)) * self.outputs
        self.proj_layer: nn.Module | None = None
        if level.stride == -1:
            self.loc_cls_layer: nn.Module = ConvLayer(in_channels, outputs, norm=False, bias=True, activation=None)
            return
        if in_channels != level.channels:
            self.proj_layer = ConvLayer(in_channels, level.channels, activation=activation)
        self.loc_cls_layer = SeparableConv(level.channels, outputs, norm=False, bias=True, activation=None)

    def forward(
        self,
        x: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:  # [B, anchors of the map, 4 + num_classes]
        if self.proj_layer is not None:
            x = self.proj_layer(x)
        return self.loc_cls_layer(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs)


def ssdlite(name: str, num_classes: int = 81, **options: Any) -> SSDLite:
    """SSDLite on the network of that name, one of `MODELS`.

    Args:
        options: as in `AFFNet`, where `img_size` is 320 unless given.

    Raises:
        ValueError: there is no such network, or an option is not as in `SSDLite` and `AFFNet`.
    """
    return SSDLite(create_model(name, **({"img_size": 320} | options)), num_classes)
