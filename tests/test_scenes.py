"""Generated scenes: pure functions of their draws, boxes and masks that agree, and nothing held out in training."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from affnet_kernels.training.data import scenes as module
from affnet_kernels.training.data.scenes import Scene, Scenes
from affnet_kernels.training.sampling import Draw

SIZES = [(96, 96), (64, 160), (131, 90)]
COUNT = 60


def drawn(train: bool, size: tuple[int, int] = (96, 96), **options: int) -> list[Scene]:
    scenes = Scenes(COUNT, train=train, **options)
    return [scenes[Draw(index, 1000 + index, size)] for index in range(COUNT)]


def same(one: Scene, other: Scene) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("train", [True, False])
def test_a_scene_is_what_it_says(train: bool, size: tuple[int, int]) -> None:
    found = drawn(train, size)
    for image, boxes, labels, mask in found:
        assert image.shape == (3, *size)
        assert mask.shape == size
        assert boxes.shape == (len(labels), 4)
        assert (image.dtype, boxes.dtype, labels.dtype, mask.dtype) == (*[torch.float32] * 2, *[torch.int64] * 2)
        assert 0 <= image.min() <= image.max() <= 1
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor(size[::-1])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 0.1 * min(size)).all()
        assert set(mask.unique().tolist()) == {0, *labels.tolist()}
    counts = [len(scene.labels) for scene in found]
    assert max(counts) == 4
    assert {label for scene in found for label in scene.labels.tolist()} == set(range(1, 11))


def test_some_scenes_are_empty() -> None:
    found = [Scenes(1, train=True)[Draw(0, seed, (32, 32))] for seed in range(150)]
    empty = [scene for scene in found if not len(scene.labels)]
    assert 1 <= len(empty) <= 12
    assert all(scene.boxes.shape == (0, 4) and not scene.mask.any() for scene in empty)


def test_boxes_fit_their_masks() -> None:
    """Every side of the box of a sticker alone touches it; where stickers meet, the overlap is small."""
    for _, boxes, labels, mask in drawn(True):
        for box, label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            inside = mask[y1:y2, x1:x2] == label
            assert inside.float().mean() > 0.45
            if len(labels) == 1:
                sides = inside[0], inside[-1], inside[:, 0], inside[:, -1]
                assert all(side.any() for side in sides)
                assert inside.sum() == (mask == label).sum()
        for a, b in itertools.combinations(boxes, 2):
            common = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
            assert common <= module.MAX_OVERLAP * min((box[2:] - box[:2]).prod() for box in (a, b))


def test_a_scene_is_a_pure_function_of_its_draw() -> None:
    torch.manual_seed(0)
    train, test, other = Scenes(9, train=True), Scenes(9, train=False), Scenes(9, 1, train=False)
    before = torch.random.get_rng_state()
    size = (64, 64)
    assert same(train[Draw(1, 7, size)], train[Draw(2, 7, size)])
    assert not torch.equal(train[Draw(1, 7, size)].image, train[Draw(1, 8, size)].image)
    assert same(test[Draw(1, 7, size)], test[Draw(1, 8, size)])
    assert not torch.equal(test[Draw(1, 7, size)].image, test[Draw(2, 7, size)].image)
    assert not torch.equal(test[Draw(1, 7, size)].image, other[Draw(1, 7, size)].image)
    assert torch.equal(torch.random.get_rng_state(), before)


def columns(photographs: Tensor) -> set[bytes]:
    """The columns of pixels of some photographs [n, 3, H, W]."""
    return {column.contiguous().numpy().tobytes() for image in photographs for column in image.permute(2, 0, 1)}


def test_held_out_scenes_are_of_held_out_digits_and_photographs() -> None:
    train, test = module._sources(True, 10), module._sources(False, 10)
    assert len(train[2]) + len(test[2]) == 1797
    assert not columns(train[0]) & columns(test[0])
    assert {digit.numpy().tobytes() for digit in train[1]}.isdisjoint(digit.numpy().tobytes() for digit in test[1])
    assert test[2].bincount().min() >= 33  # of each digit


def test_fewer_classes() -> None:
    scenes = Scenes(3, train=True, classes=3)
    assert scenes.names == ("0", "1", "2")
    assert {label for scene in drawn(True, classes=3) for label in scene.labels.tolist()} == {1, 2, 3}
    assert max(len(scene.labels) for scene in drawn(False, max_objects=1)) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"count": 0}, "count >= 1, got 0"),
        ({"classes": 11}, "classes from 1 to 10, got 11"),
        ({"max_objects": 0}, "max_objects >= 1, got 0"),
    ],
)
def test_refusals(options: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=f"Scenes: expected {expected}"):
        Scenes(**({"count": 1} | options), train=True)
    with pytest.raises(ValueError, match="Scenes: expected images of at least 32 x 32, got 31 x 64"):
        Scenes(1, train=True)[Draw(0, 0, (31, 64))]
