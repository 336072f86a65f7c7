"""SSD's multibox loss: which anchors answer for which boxes, and what their predictions cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from affnet_kernels.models.boxes import box_iou, corners, encode_boxes
from affnet_kernels.training.tasks import Loss

MIN_OVERLAP = 0.5  # of an anchor with a box that it answers for
NEGATIVES = 3  # anchors without a box that count, for each one with a box


def match_anchors(
    boxes: Tensor,  # [n, 4]: x1, y1, x2, y2, of positive area
    anchors: Tensor,  # [A, 4]: x, y, w, h of centre and size
) -> Tensor:  # [A], int64
    """The box that each anchor answers for, by index; -1 for none.

    It is the one of the largest overlap, if that is at least `MIN_OVERLAP`. In addition the best anchor of each box
    answers for it whatever their overlap, and for the later one of two boxes that have the same best anchor.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    overlaps = box_iou(boxes, corners(anchors))
    overlap, match = overlaps.max(dim=0)
    match = torch.where(overlap >= MIN_OVERLAP, match, -1)
    numbers = torch.arange(len(boxes), device=boxes.device)
    return match.scatter_reduce(0, overlaps.argmax(dim=1), numbers, "amax", include_self=False)


def multibox_loss(
    scores: Tensor,  # [B, A, num_classes]
    offsets: Tensor,  # [B, A, 4]
    anchors: Tensor,  # [A, 4]: x, y, w, h of centre and size
    boxes: Sequence[Tensor],  # of each image [n, 4]: x1, y1, x2, y2, of positive area
    labels: Sequence[Tensor],  # of each image [n], from 1
) -> Loss:
    """The cross-entropy of the classes and the smooth L1 distance of the offsets, as sums; the weight counts anchors.

    The offsets count at the anchors that answer for a box, of which the weight is the number. The classes count there
    and, in each image, at the `NEGATIVES` times as many other anchors that lose most. So an image without objects
    loses nothing, and a batch without any has weight 0. Computed in float32 whatever the predictions are.

    Source: Liu et al., arXiv 1512.02325, section 2.2; torchvision's SSD takes the same sums.
    """
    classes, wanted = [], []
    for image_boxes, image_labels in zip(boxes, labels, strict=True):
        match = match_anchors(image_boxes, anchors)
        positive = match >= 0
        wanted.append(encode_boxes(image_boxes[match[positive]], anchors[positive]))
        # The one more is the background, where the match is -1.
        classes.append(F.pad(image_labels, (0, 1))[match])
    target = torch.stack(classes)
    positive = target > 0
    location = F.smooth_l1_loss(offsets.float()[positive], torch.cat(wanted), reduction="sum")
    entropy = F.cross_entropy(scores.float().transpose(1, 2), target, reduction="none")
    counted = positive | _hardest(entropy.detach(), positive)
    classification = entropy[counted].sum()
    parts = {"boxes": location.detach(), "classes": classification.detach()}
    return Loss(location + classification, positive.sum(), parts)


def _hardest(
    losses: Tensor,  # [B, A]
    positive: Tensor,  # [B, A], bool
) -> Tensor:  # [B, A], bool
    """In each image the anchors without a box that lose most, `NEGATIVES` for each one with a box, as far as there are.

    Where they run out, those with a box, which count anyway, follow.
    """
    order = losses.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return rank < NEGATIVES * positive.sum(dim=1, keepdim=True)
