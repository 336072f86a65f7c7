"""Boxes: overlap by hand, suppression against a search box by box and against torchvision's."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from affnet_kernels.models import boxes as boxes_module
from affnet_kernels.models.boxes import batched_nms, box_iou, corners, plain_nms


def random_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] that overlap a good deal, and their scores [N]."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.4 * torch.rand(count, 2, generator=generator)
    size = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
    return corners(torch.cat((centre, size), dim=1)), torch.rand(count, generator=generator)


def naive_nms(boxes: Tensor, scores: Tensor, max_overlap: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index].item()):
        if all(box_iou(boxes[[index]], boxes[[other]]).item() <= max_overlap for other in kept):
            kept.append(index)
    return kept


def test_corners_by_hand() -> None:
    assert corners(torch.tensor([[4.0, 5.0, 2.0, 6.0]])).tolist() == [[3.0, 2.0, 5.0, 8.0]]


def test_overlap_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    torch.testing.assert_close(box_iou(a, b), torch.tensor([[1 / 7, 1.0, 0.0, 0.0], [0.0, 1 / 4, 0.0, 0.0]]))
    assert box_iou(a[:0], b).shape == (0, 4)
    assert box_iou(a, b[:0]).shape == (2, 0)


@pytest.mark.parametrize("max_overlap", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_suppression_is_the_search_box_by_box(count: int, max_overlap: float) -> None:
    boxes, scores = random_boxes(count, seed=count)
    expected = naive_nms(boxes, scores, max_overlap)
    assert plain_nms(boxes, scores, max_overlap).tolist() == expected
    if count == 60 and max_overlap < 0.9:
        assert 5 < len(expected) < 55


def test_a_suppressed_box_suppresses_nothing() -> None:
    """Each overlaps with its neighbour alone: the first one kept, the second gone, the third kept, and so on."""
    start = 0.6 * torch.arange(9)
    chain = torch.stack((start, torch.zeros(9), start + 1, torch.ones(9)), dim=1)
    assert plain_nms(chain, torch.linspace(1, 0.1, 9), 0.2).tolist() == [0, 2, 4, 6, 8]


def test_labels_are_suppressed_apart_and_the_best_comes_first() -> None:
    boxes, scores = random_boxes(50, seed=1)
    labels = torch.arange(50) % 3
    expected = [
        members[kept].item()
        for members in (torch.nonzero(labels == label)[:, 0] for label in range(3))
        for kept in naive_nms(boxes[members], scores[members], 0.3)
    ]
    got = batched_nms(boxes, scores, labels, 0.3).tolist()
    assert got == sorted(expected, key=lambda index: -scores[index].item())
    assert len(got) < 50


def test_equal_scores_keep_the_order_of_the_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert batched_nms(boxes, torch.ones(3), torch.tensor([2, 1, 2]), 0.5).tolist() == [0, 1]


def test_an_infinite_box_does_not_spoil_the_others() -> None:
    boxes = torch.tensor([[0.0, 0.0, float("inf"), 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.ones(3), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("broken", [False, True])
def test_without_torchvision(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mismatched:
        def __getattr__(self, name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.ops", Mismatched() if broken else None)
    assert boxes_module._installed_nms() is plain_nms


@pytest.mark.parametrize("seed", range(5))
def test_torchvision_agrees(seed: int) -> None:
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    boxes, scores = random_boxes(200, seed)
    torch.testing.assert_close(box_iou(boxes, boxes[:7]), ops.box_iou(boxes, boxes[:7]))
    assert boxes_module._installed_nms() is ops.nms
    for max_overlap in (0.2, 0.5):
        expected = ops.nms(boxes, scores, max_overlap)
        assert torch.equal(plain_nms(boxes, scores, max_overlap), expected)
        labels = torch.arange(200) % 4
        expected = ops.batched_nms(boxes, scores, labels, max_overlap)
        assert torch.equal(batched_nms(boxes, scores, labels, max_overlap), expected)
