"""The segmentation task: its loss and metrics by hand, and a small DeepLabv3 trained on generated scenes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from affnet_kernels.commands.train import default_recipe
from affnet_kernels.models import AFFNet, DeepLabv3, affnet_et, load_checkpoint, read_checkpoint
from affnet_kernels.models.segmenters import segmenter_from_checkpoint
from affnet_kernels.training import Recipe, Settings, train
from affnet_kernels.training.engine import Trainer
from affnet_kernels.training.logs import read_rows
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import segmentation, task_of
from affnet_kernels.training.tasks.segmentation import MeanIoU, Segmentation

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

CLASSES = 4  # background and three digits
RECIPE = Recipe.load("deeplabv3_scenes").replace(
    size=65,
    epochs=2,
    batch=4,
    ema=0.9,
    evaluate_every=1,
    options={"digits": CLASSES - 1, "output_stride": 8, "aspp_channels": 64, "train_scenes": 12, "test_scenes": 6},
)


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **options: Any) -> AFFNet:
        return AFFNet((16, 24, 32, 48, 64), (1, 1, 1, 2, 1), 2, **options)

    monkeypatch.setattr(segmentation, "create_model", create)


def constant_answer(task: Segmentation, size: int) -> float:
    """The mean IoU of calling every pixel background."""
    evaluator = task.evaluator()
    for index in range(len(task.test)):
        mask = task.test[Draw(index, 0, (size, size))].mask[None]
        logits = torch.zeros(1, len(task.classes), size, size)
        logits[:, 0] = 1
        evaluator.update(logits, mask)
    return evaluator.compute(lambda value: [value])["miou"]


# what is computed


def test_loss_is_the_cross_entropy_of_valid_pixels() -> None:
    task = Segmentation(RECIPE)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, CLASSES, 5, 7, generator=generator, dtype=torch.float64)
    masks = torch.randint(CLASSES, (3, 5, 7), generator=generator)
    masks[0, :2] = masks[1] = 255
    loss = task.loss(logits, masks)
    valid = masks != 255
    picked = logits.log_softmax(1).gather(1, masks.clamp(max=CLASSES - 1)[:, None])[:, 0]
    assert loss.weight == valid.sum()
    assert loss.total.item() == pytest.approx(-picked[valid].sum().item(), rel=1e-12)
    parts = [task.loss(logits[index : index + 1], masks[index : index + 1]) for index in range(3)]
    assert sum(part.weight for part in parts) == loss.weight
    assert sum(part.total for part in parts).item() == pytest.approx(loss.total.item(), rel=1e-12)


def test_a_batch_of_ignored_pixels_has_no_gradient() -> None:
    task = Segmentation(RECIPE)
    logits = torch.randn(2, CLASSES, 3, 3, requires_grad=True)
    loss = task.loss(logits, torch.full((2, 3, 3), 255))
    assert loss.weight == 0
    assert loss.total == 0
    loss.total.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def one_hot(found: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(found, classes).movedim(-1, 1).float()


def test_metrics_by_hand() -> None:
    """Class 0: 2 of 4 pixels shared; 1: 3 of 5; 2 is found and not there; 3 does not occur and does not count."""
    truth = torch.tensor([[[0, 0, 0, 1, 1, 1, 1, 255]]])
    found = torch.tensor([[[0, 0, 1, 1, 1, 1, 2, 2]]])
    expected = {"miou": 100 * (2 / 3 + 3 / 5 + 0) / 3, "pixel_accuracy": 100 * 5 / 7}
    whole = MeanIoU(4)
    whole.update(one_hot(found, 4), truth)
    parts = [MeanIoU(4) for _ in range(3)]  # of three processes, the last of which has no images
    for evaluator, part in zip(parts, (slice(None, 3), slice(3, None)), strict=False):
        evaluator.update(one_hot(found[..., part], 4), truth[..., part])
    states: list[Any] = []
    for evaluator in parts:
        evaluator.compute(lambda value: [states.append(value) or value])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for evaluator, gathered in [(whole, None), *((part, states) for part in parts)]:
            got = evaluator.compute(lambda value, all_of=gathered: all_of or [value])
            assert got == pytest.approx(expected, rel=1e-6)


# what is refused


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"options": {"stride": 8}}, r"expected options of \[.*\], got stride"),
        ({"options": {"output_stride": 8.5}}, "expected option output_stride to be of type int, got 8.5"),
        ({"options": {"flip": 1}}, "expected option flip to be of type bool, got 1"),
        ({"batch": 1}, "expected at least 2 images in each part of a step, .* got batch 1 in 1 parts"),
        ({"batch": 4, "accumulate": 4}, "expected at least 2 images in each part of a step, .* got batch 4 in 4 parts"),
    ],
)
def test_refusals(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"segmentation: {expected}"):
        task_of(RECIPE.replace(**values))


def test_a_folder_that_is_not_there_is_named_and_leaves_none_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="segmentation: expected a folder, got nowhere, which does not exist"):
        train(RECIPE.replace(data="nowhere"), Settings(out=tmp_path / "run", progress=False))
    assert not (tmp_path / "run").exists()


def test_scenes_are_the_default_data() -> None:
    assert default_recipe("segmentation", None, None) == "deeplabv3_scenes"
    assert default_recipe("detection", None, None) == "ssdlite_scenes"
    assert default_recipe("segmentation", "VOCdevkit", None) == "deeplabv3_voc"


def test_one_image_in_a_part_is_named(tmp_path: Path) -> None:
    """Sizes of a multi-scale recipe can leave one image to a step, which the task cannot know before."""
    recipe = RECIPE.replace(batch=2, sizes=[96])
    with pytest.raises(ValueError, match="DeepLabv3: expected at least 2 images in training, got 1"):
        train(recipe, Settings(out=tmp_path, progress=False))


# training


def test_a_small_network_learns_the_scenes(tmp_path: Path) -> None:
    """150 steps: the mean IoU is far above that of the best constant answer."""
    recipe = RECIPE.replace(
        epochs=1, batch=16, rate=5e-3, warmup_epochs=0.1, options={"train_scenes": 2400, "test_scenes": 100}
    )
    summary = train(recipe, Settings(out=tmp_path, progress=False))
    task = Segmentation(recipe)
    constant = constant_answer(task, recipe.size)
    assert constant < 22
    assert summary.metric == "miou"
    assert summary.best > 2.5 * constant
    found = segmenter_from_checkpoint(tmp_path / "best.pt")
    assert found.classes == task.classes == ["background", "0", "1", "2"]
    assert found.size == 65
    evaluator = task.evaluator()
    images, masks = task.collate([task.test[Draw(index, 0, (65, 65))] for index in range(100)])
    with torch.no_grad():
        evaluator.update(found.network(images), masks)
    assert evaluator.compute(lambda value: [value])["miou"] == pytest.approx(summary.best, abs=0.05)
    assert (tmp_path / "predictions.png").stat().st_size > 10_000


@pytest.mark.parametrize("output_stride", [8, 16])
def test_both_output_strides_train(output_stride: int) -> None:
    torch.manual_seed(0)
    task = Segmentation(RECIPE.replace(options={"output_stride": output_stride}))
    model = task.model()
    images, masks = task.collate([task.train[Draw(0, seed, (65, 65))] for seed in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = task.loss(model(images), masks)
        (loss.total / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.total / loss.weight).item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.encoder(images).shape[-1] == 64 // output_stride + 1


class Interrupted(Exception):
    """In place of a signal."""


def results(out: Path) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, Tensor]]:
    """The rows of the logs but for their times, and the best weights."""
    epochs = [{name: value for name, value in row.items() if name != "seconds"} for row in read_rows(out / "log.csv")]
    return epochs, read_rows(out / "steps.csv"), read_checkpoint(out / "best.pt")


def test_resuming_is_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(RECIPE, Settings(out=whole, progress=False, log_every=1))
    step, taken = Trainer._step, []

    def stop_in_the_second_epoch(self: Trainer, *arguments: Any) -> None:
        if len(taken) == 5:
            raise Interrupted
        taken.append(step(self, *arguments))

    settings = {"out": parts, "progress": False, "log_every": 1, "save_every": 2}
    monkeypatch.setattr(Trainer, "_step", stop_in_the_second_epoch)
    with pytest.raises(Interrupted):
        train(RECIPE, Settings(**settings))
    monkeypatch.setattr(Trainer, "_step", step)
    train(RECIPE, Settings(**settings, resume=True))
    (epochs, steps, weights), (others, other_steps, other_weights) = results(whole), results(parts)
    assert epochs == others
    assert len(steps) == 6
    assert steps == other_steps
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


def test_bfloat16_trains(tmp_path: Path) -> None:
    train(RECIPE.replace(epochs=1, amp="bf16"), Settings(out=tmp_path / "bf16", progress=False, log_every=1))
    train(RECIPE.replace(epochs=1), Settings(out=tmp_path / "float32", progress=False, log_every=1))
    losses = [[float(row["loss"]) for row in read_rows(tmp_path / name / "steps.csv")] for name in ("bf16", "float32")]
    assert all(map(math.isfinite, losses[0]))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_published_network_is_what_a_recipe_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "create_model", lambda name, **options: affnet_et(**options))
    recipe = Recipe.load("deeplabv3_scenes")
    model = Segmentation(recipe).model()
    expected = DeepLabv3(affnet_et(output_stride=16), 11)
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [
        (k, v.shape) for k, v in expected.state_dict().items()
    ]


def test_weights_of_a_classifier_go_into_the_encoder(tmp_path: Path) -> None:
    task = Segmentation(RECIPE)
    classifier = AFFNet((16, 24, 32, 48, 64), (1, 1, 1, 2, 1), 2, num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    model = task.model()
    task.load_weights(model, str(tmp_path / "classifier.pt"))
    assert torch.equal(model.encoder.conv_1.block.conv.weight, classifier.conv_1.block.conv.weight)
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "dense.pt")
    again = task.model()
    load_checkpoint(again, tmp_path / "dense.pt")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
