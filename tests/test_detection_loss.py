"""SSD's matching and multibox loss: by hand, against torchvision's, over processes, and without objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from affnet_kernels.models import SSDLite, decode_boxes, encode_boxes
from affnet_kernels.models.boxes import corners
from affnet_kernels.training.tasks import Loss
from affnet_kernels.training.tasks.multibox import match_anchors, multibox_loss

CLASSES = 4


def make_targets(counts: Sequence[int], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes [n, 4] inside the image and labels [n] of images with so many objects."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for count in counts:
        size = 0.1 + 0.5 * torch.rand(count, 2, generator=generator)
        start = (1 - size) * torch.rand(count, 2, generator=generator)
        boxes.append(torch.cat((start, start + size), dim=1))
        labels.append(torch.randint(1, CLASSES, (count,), generator=generator))
    return boxes, labels


def make_predictions(images: int, anchors: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(images, len(anchors), CLASSES, generator=generator)
    return scores.requires_grad_(), torch.randn(images, len(anchors), 4, generator=generator).requires_grad_()


# matching


def test_matching_by_hand() -> None:
    anchors = torch.tensor(
        [
            [0.25, 0.25, 0.5, 0.5],  # box 0 itself
            [0.30, 0.25, 0.5, 0.5],  # overlaps with it by 9/11
            [0.50, 0.25, 0.5, 0.5],  # by 1/3: too little
            [0.80, 0.80, 0.1, 0.1],  # box 1's best, though by 1/4 only
            [0.10, 0.90, 0.1, 0.1],  # meets no box
        ]
    )
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.75, 0.75, 0.95, 0.95]])
    assert match_anchors(boxes, anchors).tolist() == [0, 0, -1, 1, -1]
    assert match_anchors(boxes[:0], anchors).tolist() == [-1] * 5


def test_an_overlap_of_exactly_a_half_matches() -> None:
    anchors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]])
    assert match_anchors(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), anchors).tolist() == [0, 0]


def test_the_best_anchor_of_two_boxes_answers_for_the_later_one() -> None:
    anchors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    boxes = corners(torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3], [0.5, 0.5, 0.21, 0.2]]))
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert match_anchors(boxes[order], anchors).tolist() == [2, -1]


def test_every_box_has_an_anchor() -> None:
    anchors = SSDLite.anchors(160)
    boxes, _ = make_targets([12])
    assert set(match_anchors(boxes[0], anchors).tolist()) == {-1, *range(12)}


# the loss


def test_the_loss_by_hand() -> None:
    """One image, six anchors, one box at the first: the three worst of the other five count."""
    centre = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8], [0.5, 0.9], [0.9, 0.5]])
    anchors = torch.cat((centre, torch.full((6, 2), 0.1)), dim=1)
    box = decode_boxes(torch.tensor([0.5, -0.25, 1.0, 0.0]), anchors[0])[None]
    scores = torch.zeros(1, 6, 2)
    scores[0, :, 1] = torch.tensor([0.0, 4.0, 1.0, 2.0, -1.0, 3.0])  # of the object, against 0 of the background
    offsets = torch.zeros(1, 6, 4)
    offsets[0, 0] = torch.tensor([0.0, -0.25, 3.5, 0.0])
    got = multibox_loss(scores, offsets, anchors, [box], [torch.tensor([1])])
    # Smooth L1: 0.5 * 0.5 ** 2 for the first offset, 2.5 - 0.5 for the third.
    expected = {"boxes": 0.125 + 2.0, "classes": math.log(2) + sum(math.log1p(math.exp(s)) for s in (4.0, 3.0, 2.0))}
    assert got.weight == 1
    for name, value in expected.items():
        assert got.parts[name].item() == pytest.approx(value, rel=1e-5)
    assert got.total.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def torchvision_loss(
    scores: Tensor,  # [B, A, num_classes]
    offsets: Tensor,  # [B, A, 4]
    anchors: Tensor,  # [A, 4]
    boxes: list[Tensor],
    labels: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The loss of torchvision's SSD, normalised, and its matches."""
    ssd = pytest.importorskip("torchvision.models.detection.ssd", reason="torchvision is not installed")
    utils = pytest.importorskip("torchvision.models.detection._utils")
    from torchvision.ops import box_iou

    matcher, own = utils.SSDMatcher(0.5), corners(anchors)
    matches = [
        matcher(box_iou(image, own)) if len(image) else torch.full((len(own),), -1, dtype=torch.int64)
        for image in boxes
    ]
    detector = SimpleNamespace(box_coder=utils.BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3.0)
    losses = ssd.SSD.compute_loss(
        detector,
        [{"boxes": b, "labels": label} for b, label in zip(boxes, labels, strict=True)],
        {"bbox_regression": offsets, "cls_logits": scores},
        [own] * len(boxes),
        matches,
    )
    return losses["bbox_regression"] + losses["classification"], matches


@pytest.mark.parametrize("counts", [[1], [5, 0, 2], [0, 1], [9, 14, 3, 1]])
def test_the_loss_and_its_gradients_are_torchvisions(counts: list[int]) -> None:
    anchors = SSDLite.anchors((160, 192))
    boxes, labels = make_targets(counts)
    leaves = make_predictions(len(counts), anchors)
    expected, matches = torchvision_loss(*leaves, anchors, boxes, labels)
    got = multibox_loss(*leaves, anchors, boxes, labels)
    for image, match in zip(boxes, matches, strict=True):
        assert torch.equal(match_anchors(image, anchors), match)
    torch.testing.assert_close(got.total / got.weight, expected, rtol=1e-5, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(got.total / got.weight, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_images_add_up() -> None:
    """So the sums of parts of a step, or of processes, over the sum of their weights are the loss of the whole."""
    anchors = SSDLite.anchors(128)
    boxes, labels = make_targets([3, 0, 7, 1])
    leaves = make_predictions(4, anchors)
    whole = multibox_loss(*leaves, anchors, boxes, labels)
    parts = [
        multibox_loss(*(leaf[a:b] for leaf in leaves), anchors, boxes[a:b], labels[a:b])
        for a, b in ((0, 1), (1, 2), (2, 4))
    ]
    assert sum(part.weight for part in parts) == whole.weight
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    for mine, theirs in zip(
        torch.autograd.grad(whole.total, leaves),
        torch.autograd.grad(sum(part.total for part in parts), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_batch_without_objects_costs_nothing() -> None:
    anchors = SSDLite.anchors(96)
    leaves = make_predictions(2, anchors)
    loss = multibox_loss(*leaves, anchors, *make_targets([0, 0]))
    assert (loss.total, loss.weight) == (0, 0)
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss.total, leaves))


def test_more_positives_than_a_quarter_count_once() -> None:
    """Where negatives run out, what is left of the three for one are not the positives again."""
    anchors = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.52, 0.5], [0.1, 0.1, 0.1, 0.1]])
    scores, offsets = torch.zeros(1, 3, 2), encode_boxes(corners(anchors[:1]), anchors)[None]
    loss = multibox_loss(scores, offsets, anchors, [corners(anchors[:1])], [torch.tensor([1])])
    assert loss.weight == 2
    assert loss.total.item() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_taken_in_float32(dtype: torch.dtype) -> None:
    anchors = SSDLite.anchors(96)
    targets = make_targets([2, 3])
    scores, offsets = (leaf.detach().to(dtype).requires_grad_() for leaf in make_predictions(2, anchors))
    loss: Loss = multibox_loss(scores, offsets, anchors, *targets)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss, multibox_loss(scores.float(), offsets.float(), anchors, *targets))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.total, (scores, offsets)))
