"""Classification on folders of images, good ones and bad: needs torchvision, so it runs in `make test-timm`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from affnet_kernels import __main__ as cli
from affnet_kernels.models.images import load_image
from affnet_kernels.training import Recipe, Settings, logs, train
from affnet_kernels.training.data.folders import Folder
from affnet_kernels.training.sampling import Draw
from affnet_kernels.training.tasks import task_of
from tests.test_training import run_state, same

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed; make test-timm has it"
)

CLASSES = ["blue", "green", "red"]
RECIPE = Recipe.load("affnet_et").replace(size=32, sizes=[32, 64], epochs=2, batch=8, warmup_epochs=0.5, ema=0.9)


def pictures(folder: Path, count: int, size: tuple[int, int] = (48, 40)) -> None:
    """Noise with more of one channel, the class's, as JPEG files."""
    rng = np.random.default_rng(count)
    for channel, name in enumerate(reversed(CLASSES)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            values = rng.integers(0, 128, (*size, 3), dtype=np.uint8)
            values[..., channel] += 127
            Image.fromarray(values).save(folder / name / f"{index}.jpg", quality=95)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 images to train on, 6 to test on, of three classes."""
    pictures(tmp_path / "data" / "train", 4)
    pictures(tmp_path / "data" / "val", 2)
    return tmp_path / "data"


def test_training_on_folders_learns_and_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With RandAugment, MixUp and CutMix, from workers: bit for bit what one process computes."""
    options = {"rand_augment": 5, "mixup": 0.2, "cutmix": 1.0}
    recipe = RECIPE.replace(data=str(data), options=options)
    train(recipe, Settings(tmp_path / "a", log_every=1, progress=False))
    train(recipe, Settings(tmp_path / "b", log_every=1, workers=2, progress=False))
    assert same(run_state(tmp_path / "a"), run_state(tmp_path / "b"))
    sizes = {row["size"] for row in logs.read_rows(tmp_path / "a" / logs.STEPS)}
    assert sizes <= {"32", "64"}
    assert sizes


def test_the_colours_are_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "data" / "train", 24)
    pictures(tmp_path / "data" / "val", 2)
    recipe = RECIPE.replace(
        data=str(tmp_path / "data"), sizes=[], epochs=8, final_rate=0.0, warmup_rate=0.0, evaluate_every=8
    )
    summary = train(recipe, Settings(tmp_path / "run", progress=False))
    assert summary.best == 100
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run" / "best.pt")]) == 0
    assert "top1        100.00" in capsys.readouterr().out


def test_a_sample_is_a_function_of_its_draw(data: Path) -> None:
    folder = Folder(data, train=True, rand_augment=5)
    draw = Draw(3, 11, (32, 40))
    before = torch.get_rng_state()
    (image, label), (again, _) = folder[draw], folder[draw]
    assert torch.equal(before, torch.get_rng_state())
    assert image.shape == (3, 32, 40)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert torch.equal(image, again)
    assert label == 0
    assert not torch.equal(image, folder[draw._replace(seed=12)][0])


def test_held_out_images_are_prepared_as_classify_does(data: Path) -> None:
    folder = Folder(data, train=False)
    image, label = folder[Draw(5, 0, (32, 32))]
    assert torch.equal(image, load_image(data / "val" / "red" / "1.jpg", 32))
    assert (len(folder), label, folder.classes) == (6, 2, CLASSES)


def spoil(data: Path) -> None:
    """Files of every mode beside bad ones: a truncated one, one of another kind, an empty one, one of one pixel."""
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for part in ("train", "val"):
        folder = data / part / "red"
        colour = Image.fromarray(values)
        colour.convert("L").save(folder / "grey.jpg")
        colour.convert("CMYK").save(folder / "cmyk.jpg")
        colour.convert("P").save(folder / "palette.png")
        colour.convert("RGBA").save(folder / "transparent.png")
        Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
        whole = (folder / "0.jpg").read_bytes()
        (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / "text.jpg").write_text("no image")
        (folder / "empty.jpg").write_bytes(b"")
        Image.fromarray(values[:1, :1]).save(folder / "pixel.png")


def test_bad_images_are_named_and_counted_and_all_modes_are_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(data)
    recipe = RECIPE.replace(data=str(data), sizes=[])
    summary = train(recipe, Settings(tmp_path / "run", progress=False))
    said = capsys.readouterr().err
    names = {"truncated.jpg", "text.jpg", "empty.jpg", "pixel.png"}
    for part in ("train", "val"):
        for name in names:
            assert sum(str(data / part / "red" / name) in sentence for sentence in summary.skipped) == 1, name
    assert len(summary.skipped) == 8
    assert said.count("skipped: ") == 8
    assert summary.images == 2 * 16  # of 21 files, in whole batches


def empty_class(data: Path) -> None:
    (data / "train" / "empty").mkdir()
    (data / "val" / "empty").mkdir()


def unknown_class(data: Path) -> None:
    (data / "val" / "pink").mkdir()


def no_training_data(data: Path) -> None:
    (data / "train").rename(data / "training")


def no_images_to_test_on(data: Path) -> None:
    for path in (data / "val" / "red").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty_class, r"expected images \(.*\) in every class, got none in empty of .*train; remove the folder"),
        (unknown_class, r"expected the same classes in train/ and val/ of .*, got none in train/ for pink"),
        (no_training_data, r"expected a folder .*train with a folder a class, got none"),
        (no_images_to_test_on, r"in every class, got none in red of .*val"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused_at_the_start(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], message: str
) -> None:
    change(data)
    with pytest.raises((ValueError, OSError), match=message):
        task_of(RECIPE.replace(data=str(data)))
    assert cli.main(["train", "--data", str(data), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "expected" in capsys.readouterr().err


def test_an_unknown_option_or_folder_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected options of {'crop_area'.*got colour = 1"):
        task_of(RECIPE.replace(data=str(data), options={"colour": 1}))
    with pytest.raises(ValueError, match="expected crop_area >= 0"):
        task_of(RECIPE.replace(data=str(data), options={"crop_area": -1.0}))
    with pytest.raises(FileNotFoundError, match=r"expected a folder with train/ and val/, got .*none, no folder"):
        task_of(RECIPE.replace(data=str(tmp_path / "none")))
