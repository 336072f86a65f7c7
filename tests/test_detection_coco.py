"""Folders of COCO's form: what is read, what is left out and named, what is refused, and how training changes it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")

from PIL import Image

from affnet_kernels.models import AFFNet, SSDLite
from affnet_kernels.training import Recipe, Settings, train
from affnet_kernels.training.data.coco import CocoFolder
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import task_of
from affnet_kernels.training.tasks.detection import Detection

WIDTH, HEIGHT = 80, 60
CATEGORIES = [{"id": 7, "name": "tree"}, {"id": 3, "name": "cat"}]


def photograph(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A white square of 20 x 10 pixels at (40, 30) on black."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (40, 30, 60, 40))
    if mode == "I;16":
        return image.convert("L").point(lambda value: value * 257, "I").convert("I;16")
    return image.convert(mode)


def annotation(image: int, box: list[float], category: int = 3, **facts: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "area": 150.0} | facts


def listed(number: int, name: str, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": width, "height": height}


def make_folder(
    root: Path,
    images: list[dict[str, Any]] | None = None,
    annotations: list[dict[str, Any]] | None = None,
    categories: list[dict[str, Any]] | None = None,
    split: str = "val2017",
) -> Path:
    """A folder with an image a.png that is there, unless told otherwise."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    photograph().save(root / split / "a.png")
    content = {
        "images": images if images is not None else [listed(1, "a.png")],
        "annotations": annotations if annotations is not None else [annotation(1, [40, 30, 20, 10])],
        "categories": CATEGORIES if categories is None else categories,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def silently(root: Path) -> CocoFolder:
    """The data for evaluation, with no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return CocoFolder(root, train=False)


# what is read


def test_a_sample(tmp_path: Path) -> None:
    data = silently(make_folder(tmp_path, annotations=[annotation(1, [40, 30, 20, 10], 7, iscrowd=0)]))
    assert (len(data), data.names, data.skipped) == (1, ["cat", "tree"], [])
    sample = data[Draw(0, 0, (30, 160))]
    assert sample.image.shape == (3, 30, 160)
    torch.testing.assert_close(sample.boxes, torch.tensor([[0.5, 0.5, 0.75, 2 / 3]]))
    assert sample.labels.tolist() == [2]
    assert (sample.number, sample.size) == (0, (HEIGHT, WIDTH))
    assert sample.objects.boxes.tolist() == [[40, 30, 60, 40]]
    assert sample.objects.areas.tolist() == [150]
    # The box is where the square is in the resized image.
    (x1, y1, x2, y2) = (sample.boxes[0] * torch.tensor([160, 30, 160, 30])).round().long().tolist()
    assert sample.image[:, y1 + 1 : y2 - 1, x1 + 2 : x2 - 2].min() > 0.95
    assert sample.image.mean() == pytest.approx(200 / (WIDTH * HEIGHT), rel=0.02)


def test_the_boxes_of_each_image_whatever_their_order(tmp_path: Path) -> None:
    images = [listed(9, "a.png"), listed(5, "a.png"), listed(2, "a.png")]
    rows = [annotation(2, [1, 1, 4, 4]), annotation(9, [2, 2, 4, 4]), annotation(2, [3, 3, 4, 4], 7)]
    data = silently(make_folder(tmp_path, images, rows))
    assert [data[Draw(index, 0, (32, 32))].objects.boxes[:, 0].tolist() for index in range(3)] == [[2], [], [1, 3]]
    assert data[Draw(1, 0, (32, 32))].boxes.shape == (0, 4)
    assert data[Draw(2, 0, (32, 32))].labels.tolist() == [1, 2]


def test_crowds_are_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    rows = [annotation(1, [0, 0, 80, 60], iscrowd=1), annotation(1, [40, 30, 20, 10])]
    sample = silently(make_folder(tmp_path, annotations=rows))[Draw(0, 0, (32, 32))]
    assert len(sample.boxes) == len(sample.labels) == 1
    assert sample.objects.crowds.tolist() == [True, False]


def test_a_box_is_cut_off_at_the_edges(tmp_path: Path) -> None:
    data = silently(make_folder(tmp_path, annotations=[annotation(1, [-10, 50, 30, 30])]))
    assert data.objects(0).boxes.tolist() == [[0, 50, 20, 60]]


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images/train", "train", "images"])
def test_where_the_images_may_be(place: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    make_folder(tmp_path, split="train2017")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / "train2017").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / place)
    assert CocoFolder(tmp_path, train=True).files == [tmp_path / place / "a.png"]


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("I;16", "png"), ("P", "png"), ("LA", "png")]
)
def test_images_of_other_modes(mode: str, suffix: str, tmp_path: Path) -> None:
    make_folder(tmp_path, [listed(1, f"b.{suffix}")])
    photograph(mode).save(tmp_path / "val2017" / f"b.{suffix}")
    image = silently(tmp_path)[Draw(0, 0, (HEIGHT, WIDTH))].image
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image[:, 32:38, 42:58].min() > 0.9
    assert image[:, :20].max() < 0.1


def test_the_boxes_are_in_the_pixels_as_stored(tmp_path: Path) -> None:
    make_folder(tmp_path, [listed(1, "b.jpg")])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    photograph().save(tmp_path / "val2017" / "b.jpg", exif=exif)
    assert silently(tmp_path)[Draw(0, 0, (HEIGHT, WIDTH))].image[:, 32:38, 42:58].min() > 0.9


# what is left out, and what is refused at its draw


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            [annotation(1, [40, 30, 20, 0], id=5)],
            r"annotation 5 has no area inside its image of 80 x 60: \[40\.0, .*\]",
        ),
        ([annotation(1, [90, 30, 20, 10], id=5)], "annotation 5 has no area inside its image of 80 x 60: .*"),
        ([annotation(1, [40, 30, -5, 10], id=5)], "annotation 5 has no area inside its image of 80 x 60: .*"),
        ([annotation(6, [40, 30, 20, 10], id=5)], "annotation 5 is of image 6, which is not listed"),
    ],
)
def test_a_box_that_is_left_out(annotations: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    make_folder(tmp_path, annotations=[*annotations, annotation(1, [1, 1, 5, 5])])
    with pytest.warns(UserWarning, match=f"^CocoFolder: left out 1 entries of .*instances_val2017.json: {message}$"):
        data = CocoFolder(tmp_path, train=False)
    assert data.objects(0).boxes.tolist() == [[1, 1, 6, 6]]


def test_an_annotation_of_a_missing_file(tmp_path: Path) -> None:
    images = [listed(number, f"{number}.png") for number in range(2, 7)] + [listed(1, "a.png")]
    make_folder(tmp_path, images, [annotation(number, [1, 1, 5, number]) for number in range(1, 7)])
    message = (
        r"left out 5 entries of .*: .*2\.png does not exist; .*3\.png does not exist; .*4\.png does not exist; \.\.\.$"
    )
    with pytest.warns(UserWarning, match=message):
        data = CocoFolder(tmp_path, train=False)
    assert len(data) == 1
    assert data.objects(0).boxes.tolist() == [[1, 1, 6, 2]]


@pytest.mark.parametrize("fault", ["truncated", "one pixel", "another size", "empty", "text"])
def test_an_image_that_cannot_be_used_is_named_at_its_draw(fault: str, tmp_path: Path) -> None:
    width, height = (1, 1) if fault == "one pixel" else (WIDTH, HEIGHT)
    make_folder(tmp_path, [listed(1, "b.jpg", width, height)], [])
    file = tmp_path / "val2017" / "b.jpg"
    photograph(size=(32, 48) if fault == "another size" else (width, height)).save(file)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif fault in ("empty", "text"):
        file.write_text("" if fault == "empty" else "no image")
    data = silently(tmp_path)
    with pytest.raises(ValueError, match=r"^CocoFolder: expected .*b\.jpg"):
        data[Draw(0, 0, (32, 32))]


# what is refused at once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annotations": [annotation(1, [1, 1, 5, 5], 4, id=8)]},
            r"expected a category that .* lists, got 4 of annotation 8",
        ),
        (
            {"annotations": [annotation(1, [1, 1, 5])]},
            r"expected bbox to be x, y, width and height, got \[1, 1, 5\] of .*",
        ),
        ({"annotations": [annotation(1, [1, 1, 5, float("nan")])]}, "expected bbox to be x, y, width and height, .*"),
        (
            {"annotations": [{"image_id": 1, "category_id": 3}]},
            "expected bbox to be .*, got None of annotation 0 in .*",
        ),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "expected id, file_name, height and width of each image, .*"),
        ({"images": [listed(1, "a.png"), listed(1, "b.png")]}, r"expected an id for each image, got 1 twice in .*json"),
        ({"images": [listed(1, "a.png", 0)]}, "expected images of a positive size, got 0 x 60 of a.png in .*"),
        ({"images": []}, "expected images, got 0 in .*json, none of which is in .*val2017"),
        (
            {"images": [listed(1, "z.png")]},
            "expected images, got 1 in .*, none of which is in .*; the first is .*z.png",
        ),
        ({"categories": []}, r"expected categories with an id and a name each, got \[\] in .*json"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "expected categories with an id and .*"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_folder(tmp_path, **change)
    with pytest.raises(ValueError, match=f"^CocoFolder: {message}$"):
        CocoFolder(tmp_path, train=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON, got .*json: .*"),
        ("[]", "expected lists of images, annotations and categories, got no images in .*json"),
        ('{"images": [], "annotations": [1], "categories": []}', "expected lists of .*, got no annotations in .*json"),
    ],
)
def test_a_file_that_is_no_annotation_file(text: str, message: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(ValueError, match=f"^CocoFolder: {message}$"):
        CocoFolder(tmp_path, train=False)


def test_a_folder_without_annotations_or_images(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^CocoFolder: expected a folder, got .*nowhere, which does not exist$"):
        CocoFolder(tmp_path / "nowhere", train=False)
    with pytest.raises(
        OSError, match=r"^CocoFolder: expected annotations/instances_val\*\.json in .*, got no such file$"
    ):
        CocoFolder(tmp_path, train=False)
    make_folder(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "pictures")
    with pytest.raises(
        OSError, match=r"^CocoFolder: expected the images in .*val2017 or .*images, got no such folder$"
    ):
        CocoFolder(tmp_path, train=False)
    (tmp_path / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got instances_val2014\.json, instances_val2017\.json$"):
        CocoFolder(tmp_path, train=False)


# training


def test_the_task_on_a_folder(tmp_path: Path) -> None:
    """Evaluation needs neither torchvision nor the annotations for training."""
    recipe = Recipe.load("ssdlite_coco").replace(data=str(make_folder(tmp_path)))
    task = task_of(recipe)
    assert task.classes == ["background", "cat", "tree"]
    with pytest.raises((OSError, ImportError), match=r"instances_train\*\.json|training needs torchvision"):
        task.train_data()
    images, targets = task.collate([task.test_data()[Draw(0, 0, (320, 320))]])
    assert images.shape == (1, 3, 320, 320)
    assert targets.objects[0].boxes.tolist() == [[40, 30, 60, 40]]
    assert targets.scales.tolist() == [[WIDTH, HEIGHT, WIDTH, HEIGHT]]


def test_other_categories_for_training(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    make_folder(tmp_path)
    make_folder(tmp_path, annotations=[], split="train2017", categories=[{"id": 3, "name": "dog"}])
    message = r"^detection: expected the same categories for training and evaluation in .*, got dog and cat, tree$"
    with pytest.raises(ValueError, match=message):
        task_of(Recipe.load("ssdlite_coco").replace(data=str(tmp_path))).train_data()


def test_without_torchvision_training_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ImportError, match=r"^CocoFolder: training needs torchvision, got .*; pip install torchvision$"):
        CocoFolder(make_folder(tmp_path, split="train2017"), train=True)


def test_training_follows_the_draw_and_keeps_the_box_on_the_square(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    data = CocoFolder(make_folder(tmp_path, split="train2017"), train=True)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    sizes, flipped = set(), set()
    for seed in range(40):
        sample = data[Draw(0, seed, (96, 96))]
        again = data[Draw(0, seed, (96, 96))]
        assert torch.equal(sample.image, again.image)
        assert torch.equal(sample.boxes, again.boxes)
        assert sample.image.shape == (3, 96, 96)
        assert 0 <= sample.image.min() <= sample.image.max() <= 1
        assert len(sample.boxes) == len(sample.labels) <= 1
        if len(sample.boxes):
            x1, y1, x2, y2 = (sample.boxes[0] * 96).round().long().tolist()
            assert 0 <= x1 < x2 <= 96
            assert 0 <= y1 < y2 <= 96
            inside = sample.image[:, y1:y2, x1:x2].mean()
            outside = torch.cat((sample.image[:, :y1].flatten(), sample.image[:, y2:].flatten()))
            assert inside > 0.4 + (outside.mean() if len(outside) else 0)
            sizes.add(round(x2 - x1))
            flipped.add(x1 + x2 < 96)
    assert len(sizes) > 5
    assert flipped == {True, False}
    assert torch.equal(torch.get_rng_state(), state)


def test_damaged_images_stop_neither_training_nor_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchvision", "pycocotools", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed")

    def network(task: Detection) -> SSDLite:
        return SSDLite(AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2), len(task.classes))

    monkeypatch.setattr(Detection, "model", network)
    images = [listed(number, name) for number, name in enumerate(["a.png", "b.jpg", "a.png", "c.jpg", "a.png"])]
    rows = [annotation(number, [40, 30, 20, 10]) for number in range(5)]
    for split in ("train2017", "val2017"):
        make_folder(tmp_path, images, rows, split=split)
        photograph().save(tmp_path / split / "b.jpg")
        (tmp_path / split / "b.jpg").write_bytes((tmp_path / split / "b.jpg").read_bytes()[:-200])
    recipe = Recipe.load("ssdlite_coco").replace(
        data=str(tmp_path), size=64, epochs=1, batch=4, warmup_epochs=0.0, ema=0.0, amp="off"
    )
    with pytest.warns(UserWarning, match=r"^CocoFolder: left out 1 entries of .*: .*c\.jpg does not exist$"):
        summary = train(recipe, Settings(tmp_path / "run", progress=False))
    assert summary.images == 4
    named = [f"{split}/b.jpg" for split in ("train2017", "val2017")]
    assert len(summary.skipped) == 2
    for name, sentence in zip(named, summary.skipped, strict=True):
        assert sentence.startswith("CocoFolder: expected ")
        assert name in sentence
    assert (tmp_path / "run" / "predictions.png").exists()


def test_an_image_without_boxes_trains(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    data = CocoFolder(make_folder(tmp_path, annotations=[], split="train2017"), train=True)
    for seed in range(5):
        sample = data[Draw(0, seed, (64, 64))]
        assert sample.boxes.shape == (0, 4)
        assert sample.labels.shape == (0,)
