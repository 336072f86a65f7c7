"""Mean average precision: by hand, over processes, and where there is nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from affnet_kernels.models import Detections
from affnet_kernels.training.data.objects import Objects
from affnet_kernels.training.tasks.coco_map import METRICS, MeanAveragePrecision

Row = tuple[float, float, float, float]
SQUARE: Row = (10, 10, 50, 50)
ELSEWHERE: Row = (100, 100, 150, 150)


def alone(part: Any) -> list[Any]:
    return [part]


def found(*rows: tuple[Row, int, float]) -> Detections:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).view(-1, 4)
    scores, labels = (torch.tensor([row[i] for row in rows]) for i in (2, 1))
    return Detections(boxes, scores.float(), labels.long())


def objects(*rows: tuple[Row, int], crowds: tuple[bool, ...] = ()) -> Objects:
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).view(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    crowd = torch.tensor(crowds or [False] * len(rows), dtype=torch.bool)
    return Objects(boxes, labels, crowd, (boxes[:, 2:] - boxes[:, :2]).prod(dim=1))


def metrics(*images: tuple[Detections, Objects]) -> dict[str, float]:
    precision = MeanAveragePrecision()
    for number, image in enumerate(images):
        precision.update(number, *image)
    return precision.compute(alone)


def test_what_is_right_has_precision_one() -> None:
    got = metrics((found((SQUARE, 1, 0.9), (ELSEWHERE, 2, 0.3)), objects((SQUARE, 1), (ELSEWHERE, 2))))
    assert tuple(got) == METRICS
    assert [got[name] for name in ("map", "map50", "map75", "mar100")] == pytest.approx([100, 100, 100, 100])


def test_a_box_that_is_a_little_off_is_right_at_lower_overlaps() -> None:
    near = (10.0, 10.0, 50.0, 38.0)  # an intersection over union of 0.7: right at 0.5, 0.55, ..., 0.7 of ten thresholds
    got = metrics((found((near, 1, 0.9)), objects((SQUARE, 1))))
    assert (got["map50"], got["map75"]) == (pytest.approx(100), 0)
    assert got["map"] == pytest.approx(50)


def test_the_precision_by_hand() -> None:
    """Of two objects one is found at rank 1, the other at rank 3: precisions 1 and 2/3 at 51 and 50 of 101 recalls."""
    got = metrics(
        (found((SQUARE, 1, 0.9), (ELSEWHERE, 1, 0.8)), objects((SQUARE, 1))),
        (found((ELSEWHERE, 1, 0.7)), objects((ELSEWHERE, 1))),
    )
    assert got["map50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_the_wrong_class_and_the_wrong_image_count_as_wrong() -> None:
    assert metrics((found((SQUARE, 2, 0.9)), objects((SQUARE, 1))))["map50"] == 0
    assert metrics((found((SQUARE, 1, 0.9)), objects()), (found(), objects((SQUARE, 1))))["map50"] == 0


def test_detections_in_a_crowd_do_not_count() -> None:
    inside = ((100.0, 100.0, 120.0, 120.0), 1, 0.95)
    target = objects((SQUARE, 1), (ELSEWHERE, 1), crowds=(False, True))
    assert metrics((found((SQUARE, 1, 0.9), inside), target))["map50"] == pytest.approx(100)
    assert metrics((found((SQUARE, 1, 0.9), inside), objects((SQUARE, 1))))["map50"] == pytest.approx(50)


def test_sizes_are_told_by_the_area_of_the_object() -> None:
    got = metrics((found((SQUARE, 1, 0.9)), objects((SQUARE, 1))._replace(areas=torch.tensor([900.0]))))
    assert (got["map_small"], got["map_medium"]) == (pytest.approx(100), -1)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], -1),
        ([(found(), objects())], -1),
        ([(found((SQUARE, 1, 0.9)), objects())], -1),
        ([(found(), objects((SQUARE, 1)))], 0),
    ],
)
def test_where_there_is_nothing(images: list[tuple[Detections, Objects]], expected: float) -> None:
    assert metrics(*images)["map50"] == expected


def test_processes_together_give_what_one_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(9):
        start = 100 * torch.rand(3, 2, generator=generator)
        boxes = torch.cat((start, start + 20 + 40 * torch.rand(3, 2, generator=generator)), dim=1)
        labels = torch.randint(1, 4, (3,), generator=generator)
        noise = 4 * torch.randn(3, 4, generator=generator)
        scores = torch.rand(3, generator=generator)
        target = Objects(boxes, labels, torch.zeros(3, dtype=torch.bool), (boxes[:, 2:] - boxes[:, :2]).prod(dim=1))
        images.append((Detections(boxes + noise, scores, labels), target))
    expected = metrics(*images)
    assert 10 < expected["map"] < 90
    # The third process has no images, and one image came to two processes.
    shares = [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], []]
    processes = [MeanAveragePrecision() for _ in shares]
    for process, share in zip(processes, shares, strict=True):
        for number in share:
            process.update(number, *images[number])
    parts: list[Any] = []
    for process in processes:  # what a gather between processes would have brought together
        process.compute(lambda part: parts.append(part) or [part])
    for process in processes:
        assert process.compute(lambda part: parts) == expected
