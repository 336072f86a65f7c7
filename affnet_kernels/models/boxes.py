"""Boxes: their two forms, the offsets that SSD predicts, their overlap, and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def corners(
    boxes: Tensor,  # [..., 4]: x, y, w, h of centre and size
) -> Tensor:  # [..., 4]: x1, y1, x2, y2
    """The corners of boxes that are given by centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def decode_boxes(
    offsets: Tensor,  # [..., 4]
    anchors: Tensor,  # [..., 4]: x, y, w, h of centre and size
) -> Tensor:  # [..., 4]: x1, y1, x2, y2
    """The boxes at some offsets from anchors."""
    centre = anchors[..., :2] + offsets[..., :2] * CENTRE_VARIANCE * anchors[..., 2:]
    size = anchors[..., 2:] * torch.exp(offsets[..., 2:] * SIZE_VARIANCE)
    return corners(torch.cat((centre, size), dim=-1))


def encode_boxes(
    boxes: Tensor,  # [..., 4]: x1, y1, x2, y2
    anchors: Tensor,  # [..., 4]: x, y, w, h of centre and size
) -> Tensor:  # [..., 4]
    """The offsets of boxes from anchors; the inverse of `decode_boxes`."""
    start, end = boxes.split(2, dim=-1)
    centre = ((start + end) / 2 - anchors[..., :2]) / anchors[..., 2:] / CENTRE_VARIANCE
    size = torch.log((end - start) / anchors[..., 2:]) / SIZE_VARIANCE
    return torch.cat((centre, size), dim=-1)


def box_iou(
    a: Tensor,  # [N, 4]: x1, y1, x2, y2
    b: Tensor,  # [M, 4]: x1, y1, x2, y2
) -> Tensor:  # [N, M]
    """The intersection over union of each box of `a` with each of `b`; NaN for two boxes without area."""
    shared = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    intersection = shared.clamp(min=0).prod(dim=-1)
    areas = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=-1) for boxes in (a, b))
    union = next(areas)[:, None] + next(areas) - intersection
    return intersection / union


def batched_nms(
    boxes: Tensor,  # [N, 4]: x1, y1, x2, y2
    scores: Tensor,  # [N]
    labels: Tensor,  # [N]
    max_overlap: float,
) -> Tensor:  # [kept], int64
    """Non-maximum suppression among the boxes of each label: which ones stay, the best score first.

    Label by label, on torchvision's `nms` where torchvision is installed, and on `plain_nms` elsewhere. (torchvision's
    own `batched_nms` moves the labels apart by adding to the coordinates, which rounds them, and one infinite
    coordinate spoils all boxes.)
    """
    nms = _installed_nms()
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for label in labels.unique():
        (candidates,) = torch.nonzero(labels == label, as_tuple=True)
        kept.append(candidates[nms(boxes[candidates], scores[candidates], max_overlap)])
    keep = torch.cat(kept).sort().values  # so that equal scores stay in the order of the boxes
    return keep[scores[keep].argsort(descending=True, stable=True)]


def plain_nms(
    boxes: Tensor,  # [N, 4]: x1, y1, x2, y2
    scores: Tensor,  # [N]
    max_overlap: float,
) -> Tensor:  # [kept], int64
    """torchvision's `nms` in plain PyTorch: a box goes that overlaps by more than `max_overlap` with a better one kept.

    A box's fate depends on those of the better boxes alone, so what a round leaves unchanged is the answer, and after
    n rounds the first n boxes are right: as many rounds as the longest chain of boxes that decide over one another.
    """
    order = scores.argsort(descending=True, stable=True)
    overlapped = (box_iou(boxes[order], boxes[order]) > max_overlap).triu(diagonal=1)  # [better, worse]
    keep, before = torch.ones_like(order, dtype=torch.bool), None
    while before is None or not torch.equal(keep, before):
        before, keep = keep, ~(overlapped & keep[:, None]).any(dim=0)
    return order[keep]


def _installed_nms() -> Callable[[Tensor, Tensor, float], Tensor]:
    try:
        from torchvision.ops import nms
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        return plain_nms
    return nms
