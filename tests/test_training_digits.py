"""AFFNet-ET learns scikit-learn's digits in half a minute, and is evaluated and put to work; photographs' parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from affnet_kernels import __main__ as cli
from affnet_kernels.training import Recipe, Summary
from affnet_kernels.training.data.digits import Digits
from affnet_kernels.training.data.photos import Photos
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import task_of

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
np = pytest.importorskip("numpy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's run on digits, smaller and shorter than the recipe's."""
    out = tmp_path_factory.mktemp("digits") / "run"
    options = ["--size", "32", "--epochs", "4", "--set", "ema=0.9", "--set", "evaluate_every=4"]
    assert cli.main(["train", "--data", "digits", "--out", str(out), "--quiet", *options]) == 0
    return out


@pytest.mark.xdist_group("digits")
def test_digits_are_learnt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """97 % and more, of 540 that training did not see."""
    assert cli.main(["evaluate", str(run / "best.pt")]) == 0
    words = capsys.readouterr().out.split()
    assert float(words[words.index("top1") + 1]) >= 97
    assert float(words[words.index("top5") + 1]) >= 99


@pytest.mark.xdist_group("digits")
def test_classify_knows_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, activation and size of images come from best.pt."""
    digits, right = Digits(train=False), 0
    for index in range(5):
        image, label = digits[Draw(index, 0, (36, 36))]  # of which the middle is shown
        pixels = (255 * image.permute(1, 2, 0)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "digit.png")
        assert cli.main(["classify", str(tmp_path / "digit.png"), "--checkpoint", str(run / "best.pt")]) == 0
        first = capsys.readouterr().out.splitlines()[1]
        right += first.split()[-1] == str(label)
    assert right >= 4


@pytest.mark.xdist_group("digits")
def test_evaluate_refuses_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run / "best.pt"), "--data", "photos"]) == 2
    assert (
        "expected data of the checkpoint's classes, 10 (0, 1, 2, ...), got 24 (china, row 1" in capsys.readouterr().err
    )
    torch.save(torch.load(run / "best.pt")["model_state_dict"], tmp_path / "plain.pt")
    assert cli.main(["evaluate", str(tmp_path / "plain.pt")]) == 2
    assert "expected --recipe for a checkpoint that does not tell it" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "plain.pt"), "--recipe", "digits", "--size", "32"]) == 0


@pytest.mark.xdist_group("digits")
def test_a_run_starts_from_another(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 24 classes instead of 10: all but the classifier is taken."""
    options = ["--weights", str(run / "best.pt"), "--size", "32", "--epochs", "1", "--set", "limit=8", "--batch", "8"]
    out = tmp_path / "run"
    assert cli.main(["train", "--data", "photos", "--out", str(out), "--quiet", "--set", "rate=0.0", *options]) == 0
    ours, theirs = (torch.load(folder / "best.pt")["model_state_dict"] for folder in (out, run))
    different = [
        key
        for key in ours
        if "running" not in key and "num_batches" not in key and not torch.equal(ours[key], theirs[key])
    ]
    assert different == ["classifier.fc.weight", "classifier.fc.bias"]


def test_the_digits_of_training_and_test_are_others() -> None:
    train, test = Digits(train=True), Digits(train=False)
    assert (len(train), len(test)) == (1257, 540)
    seen = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in seen for image in test.images) == 0
    draw = Draw(7, 3, (32, 32))
    assert torch.equal(train[draw][0], train[draw][0])
    assert not torch.equal(train[draw][0], train[draw._replace(seed=4)][0])
    assert torch.equal(test[draw][0], test[draw._replace(seed=4)][0])


def test_photographs_parts() -> None:
    recipe = Recipe.load("photos")
    task = task_of(recipe)
    assert len(task.classes) == len(set(task.classes)) == 24
    for data in (task.train_data(), task.test_data()):
        labels = [data[Draw(index, index, (32, 32))][1] for index in range(48)]
        assert labels == [*range(24), *range(24)]
        image = data[Draw(5, 1, (32, 48))][0]
        assert image.shape == (3, 32, 48)
        assert 0 <= image.min() < image.max() <= 1
    test, draw = task.test_data(), Draw(5, 1, (32, 32))
    assert torch.equal(test[draw][0], test[draw._replace(seed=2)][0])
    assert not torch.equal(test[draw][0], test[draw._replace(index=5 + 24)][0])
    assert not torch.equal(Photos(48, train=True)[draw][0], test[draw][0])


def test_options_that_digits_do_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected options of {} for data digits, got flip = True"):
        task_of(Recipe.load("digits").replace(options={"flip": True}))


def test_the_summary_is_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from affnet_kernels.commands.train import table

    summary = Summary("top1", 98.7, 3, 4, 200.0, 1000, 20.0, 150.0, ["a"])
    lines = dict(line.split("  ", 1) for line in table(summary, Path("out")).splitlines())
    cells = {name.strip(): value.strip() for name, value in lines.items()}
    assert cells["best top1"] == "98.70 in epoch 3 of 4"
    assert cells["images"] == "1000, 5.0 per second"
    assert cells["waiting for data"] == "10.0 %"
    assert cells["model"] == "75.0 %"
    assert cells["evaluation, checkpoints, logs"] == "15.0 %"
    assert cells["skipped samples"] == "1"
