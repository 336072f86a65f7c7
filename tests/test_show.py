"""`python -m affnet_kernels show` and `classify`: what they draw and print, and what they refuse."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affnet_kernels.__main__ import main
from affnet_kernels.commands import show
from affnet_kernels.commands.networks import random_network
from affnet_kernels.models import AFFNet, affnet_et
from affnet_kernels.models.filters import Filter, filters_of, weights_at
from affnet_kernels.models.images import load_image
from tests.networks import images, official_logits, seeded_state_dict

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

LAYERS = [f"layer_{stage}.1.global_rep.0.filter" for stage in (3, 4, 5)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / "china.jpg", folder / "flower.png"]
    for path, image in zip(paths, datasets.load_sample_images().images, strict=True):
        Image.fromarray(image).save(path)
    return paths


@cache
def seeded() -> AFFNet:
    network = affnet_et().eval()
    network.load_state_dict(seeded_state_dict(network))
    return network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "affnet_et.pt"
    torch.save(seeded().state_dict(), path)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that refuses its input says: one line, and nothing on stdout."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if "no --checkpoint" not in line]
    assert len(lines) == 1
    return lines[0]


def drawn(
    path: Path, layers: list[str], channels: list[int] | None = None, positions: Any = (), title: str = "title"
) -> Any:
    """The figure of an image, and the filters that it is drawn from."""
    image = load_image(path, 64)
    seen = filters_of(random_network("affnet_et", "silu", "layer_norm_2d"), image[None], layers)
    return show.draw(image, seen, channels, list(positions), title), seen


def panels(figure: Any) -> dict[str, np.ndarray]:
    return {axes.get_label(): np.asarray(axes.images[0].get_array()) for axes in figure.axes}


def test_show_writes_a_small_picture(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(photographs[0])]) == 0
    said = capsys.readouterr()
    assert said.out == "china.filters.png\n"
    assert said.err == "show: no --checkpoint, so the weights are random (seed 0), not trained ones\n"
    assert [path.name for path in tmp_path.iterdir()] == ["china.filters.png"]
    assert (tmp_path / "china.filters.png").stat().st_size < 150_000
    with Image.open("china.filters.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * picture.height > 500
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    red, blue = pixels[..., 0], pixels[..., 2]
    assert (red - blue > 100).mean() > 0.01  # the kernels' positive values, and the negative ones
    assert (blue - red > 60).mean() > 0.01
    assert (pixels.min(2) == 255).mean() > 0.2  # the paper between the panels


def test_every_panel_is_there_with_what_it_says(photographs: list[Path]) -> None:
    figure, seen = drawn(photographs[0], LAYERS, [3, 40], [(1, 0), (0.5, 0.99)])
    shown = panels(figure)
    assert len(shown) == 1 + len(LAYERS) * 2 * 5
    assert np.allclose(shown["image"].transpose(2, 0, 1), load_image(photographs[0], 64))
    for layer, size in zip(LAYERS, (8, 4, 2), strict=True):
        for channel in (3, 40):
            here = {name.split(", ")[2]: values for name, values in shown.items() if f"{layer}, {channel}," in name}
            assert list(here) == ["map x", "mask |M|", "kernel", "pixel 1,0", f"pixel {size // 2},{size - 1}"]
            mask, kernel = seen[layer].mask[0, channel], seen[layer].kernels[0, channel]
            assert np.array_equal(here["map x"], seen[layer].x[0, channel])
            assert 10 ** here["mask |M|"].max() == pytest.approx(mask.abs().max().item(), rel=1e-4)
            dc = max(mask[0, 0].abs().item(), 1e-3 * mask.abs().max().item())
            assert 10 ** here["mask |M|"][size // 2, size // 2] == pytest.approx(dc, rel=1e-4)
            assert here["kernel"][size // 2, size // 2] == kernel[0, 0]
            assert np.array_equal(here["pixel 1,0"], weights_at(kernel, 1, 0))
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "title"
    assert all(layer in texts for layer in LAYERS)


def test_labels_do_not_overlap(photographs: list[Path]) -> None:
    for layers, channels, positions in ((3, None, [(0.25, 0.5)]), (1, [1], []), (3, [1, 2, 3, 4, 5], [])):
        figure, _ = drawn(photographs[0], LAYERS[:layers], channels, positions, "$a name: that is too long" * 20)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.texts] + [axes.get_window_extent() for axes in figure.axes]
        for index, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
            assert not any(
                min(box.x1, other.x1) - max(box.x0, other.x0) > 0.5
                and min(box.y1, other.y1) - max(box.y0, other.y0) > 0.5
                for other in boxes[:index]
            )


def test_another_image_has_other_kernels(photographs: list[Path]) -> None:
    one, other = (panels(drawn(path, LAYERS[:1], [0])[0]) for path in photographs)
    name = f"{LAYERS[0]}, 0, kernel"
    assert np.abs(one[name] - other[name]).max() > 0.1 * np.abs(one[name]).max()
    again = panels(drawn(photographs[0], LAYERS[:1], [0])[0])
    assert np.array_equal(one[name], again[name])


def test_random_weights_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    random_network("affnet_et", "silu", "layer_norm_2d")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_channels_of_the_largest_masks() -> None:
    kernels = torch.zeros(1, 5, 2, 2)
    kernels[0, :, 0, 0] = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])
    kernels[0, 0] += 100  # the DC of a mask, which only adds the map's mean
    nothing = torch.zeros(1, 5, 2, 2)
    assert show.strongest_channels(Filter(nothing, nothing, nothing, kernels)) == [1, 3, 4]


def test_a_mask_of_zeros_is_drawn(photographs: list[Path], recwarn: pytest.WarningsRecorder) -> None:
    image = load_image(photographs[0], 64)
    layer = LAYERS[0]
    nothing = torch.zeros(1, 8, 4, 4)
    figure = show.draw(image, {layer: Filter(nothing, nothing, nothing, nothing)}, None, [], "title")
    figure.draw_without_rendering()
    assert len(figure.axes) == 1 + 3 * show.DEFAULT_CHANNELS
    assert not list(recwarn)


def test_show_with_a_checkpoint(
    photographs: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = {}
    for name, options in {
        "et": ["--checkpoint", checkpoint],
        "relu": ["--checkpoint", checkpoint, "--activation", "relu"],
        "random": [],
    }.items():
        out = tmp_path / f"{name}.png"
        arguments = ["show", photographs[1], "--size", 64, "--layer", LAYERS[1], "--out", out, *options]
        assert main([str(argument) for argument in arguments]) == 0
        pictures[name] = out.read_bytes()
    assert len(set(pictures.values())) == 3
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / f"{name}.png") for name in pictures]
    assert said.err.count("random") == 1


def test_show_refuses(photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flower, out = photographs[1], tmp_path / "out.png"
    arguments = ("show", flower, "--size", 64, "--out", out)
    assert refusal(capsys, *arguments, "--layer", "layer_9") == (
        "filters_of: expected layers among "
        + ", ".join(
            f"layer_{stage}.1.global_rep.{index}.filter"
            for stage, count in ((3, 2), (4, 4), (5, 3))
            for index in range(count)
        )
        + ", got 'layer_9'"
    )
    assert refusal(capsys, *arguments, "--model", "resnet").startswith("create_model: expected one of ['affnet_et', ")
    assert refusal(capsys, *arguments, "--channels", 0, 64) == (
        f"show: expected --channels from 0 to 63 for {LAYERS[0]}, got 64"
    )
    assert refusal(capsys, *arguments, "--position", "3,1") == (
        "show: expected --position inside the 2 x 2 map, 0,0 to 1,1, got 3,1"
    )
    assert refusal(capsys, *arguments, "--position", "0.5,1.0") == (
        "show: expected --position inside the 64 x 64 map, 0.0,0.0 to below 1.0,1.0, got 0.5,1.0"
    )
    for text in ("3", "3,x", "0.5,", "1,2,3"):
        assert refusal(capsys, *arguments, "--position", text) == (
            f"show: expected --position as ROW,COLUMN, such as 3,5 or 0.25,0.5, got {text}"
        )
    assert refusal(capsys, *arguments, "--size", 16) == "load_image: expected size >= 32, got 16"
    assert refusal(capsys, "show", tmp_path / "none.jpg", "--out", out) == (
        f"load_image: expected an image file, got {tmp_path / 'none.jpg'}, which does not exist"
    )
    assert refusal(capsys, "show", flower, "--out", "x.pdf") == "show: expected --out to end in .png, got x.pdf"
    missing = tmp_path / "missing" / "x.png"
    assert refusal(capsys, "show", flower, "--out", missing) == (
        f"show: expected --out in a folder that exists, got {missing}"
    )
    assert refusal(capsys, "show", flower, "--out", flower) == (
        f"show: expected --out to be another file than the image, got {flower}"
    )
    assert refusal(capsys, *arguments, "--checkpoint", tmp_path / "none.pt").startswith("read_checkpoint: ")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    out.write_text("the old one")

    save = Image.Image.save

    def fail(image: Image.Image, target: Any, *arguments: Any, **options: Any) -> None:
        save(image, target, *arguments, **options)
        if isinstance(target, Path):
            raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    said = refusal(capsys, "show", photographs[0], "--size", 64, "--layer", LAYERS[2], "--out", out)
    assert said == "no space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert out.read_text() == "the old one"


def test_show_without_matplotlib(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def guarded(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", guarded)
    said = refusal(capsys, "show", photographs[0], "--size", 64, "--out", tmp_path / "x.png")
    assert said == "show: expected matplotlib to be installed, got none; pip install matplotlib"


def table(said: str) -> dict[str, list[tuple[float, str]]]:
    """What `classify` printed: probabilities and names under each image."""
    found: dict[str, list[tuple[float, str]]] = {}
    for line in said.splitlines():
        if row := re.fullmatch(r" +([\d.]+) %  (.+)", line):
            found[list(found)[-1]].append((float(row[1]), row[2]))
        else:
            found[line] = []
    return found


def test_classify(
    photographs: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"name {index}\n" for index in range(1000)))
    arguments = ["classify", *map(str, photographs), "--checkpoint", str(checkpoint), "--labels", str(labels)]
    assert main(arguments) == 0
    said = table(capsys.readouterr().out)
    assert list(said) == [str(path) for path in photographs]
    for path, rows in zip(photographs, said.values(), strict=True):
        with torch.no_grad():
            expected = seeded()(load_image(path)[None])[0].softmax(0).topk(5)
        assert [name for _, name in rows] == [f"name {index}" for index in expected.indices.tolist()]
        assert [value for value, _ in rows] == pytest.approx((100 * expected.values).tolist(), abs=0.006)
    assert main([*arguments, "--top", "2", "--size", "64", "--model", "affnet_et", "--activation", "relu"]) == 0
    assert [len(rows) for rows in table(capsys.readouterr().out).values()] == [2, 2]


def test_classify_agrees_with_the_official_logits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file to the table, with the official network's input in the image's place."""
    monkeypatch.setattr("affnet_kernels.commands.classify.load_image", lambda path, size: images()[0])
    assert main(["classify", "image", "--checkpoint", str(checkpoint), "--top", "3"]) == 0
    expected = official_logits("affnet_et", "silu")[0].softmax(0).topk(3)
    rows = table(capsys.readouterr().out)["image"]
    assert [value for value, _ in rows] == pytest.approx((100 * expected.values).tolist(), abs=0.006)


@pytest.mark.parametrize("error", [None, ImportError("No module named 'timm'"), RuntimeError("torchvision::nms")])
def test_class_names_of_timm(
    error: Exception | None, photographs: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = builtins.__import__

    class ImageNetInfo:
        def index_to_description(self, index: int) -> str:
            return f"animal {index}"

    def guarded(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "timm.data":
            if error is not None:
                raise error
            return types.SimpleNamespace(ImageNetInfo=ImageNetInfo)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert main(["classify", str(photographs[0]), "--size", "64", "--checkpoint", str(checkpoint)]) == 0
    said = capsys.readouterr()
    hint = "classify: classes are shown by number; pip install timm, or give --labels\n"
    assert said.err == ("" if error is None else hint)
    word = "animal" if error is None else "class"
    assert all(re.fullmatch(rf"{word} \d+", name) for _, name in table(said.out)[str(photographs[0])])


def test_classify_with_other_classes(
    photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "three.pt"
    torch.save(affnet_et(num_classes=3).state_dict(), path)
    arguments = ("classify", photographs[0], "--size", 64, "--checkpoint", path)
    assert main([str(argument) for argument in (*arguments, "--top", 3)]) == 0
    said = capsys.readouterr()
    assert said.err == "classify: classes are shown by number; give their names by --labels\n"
    rows = table(said.out)[str(photographs[0])]
    assert sorted(name for _, name in rows) == ["class 0", "class 1", "class 2"]
    assert sum(value for value, _ in rows) == pytest.approx(100, abs=0.02)
    assert refusal(capsys, *arguments) == "classify: expected --top from 1 to 3, the checkpoint's classes, got 5"

    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    assert refusal(capsys, *arguments, "--top", 1, "--labels", labels) == (
        f"classify: expected a name a line for 3 classes, got 2 lines in {labels}"
    )
    labels.write_bytes(b"\xff\xfe\xfa")
    assert refusal(capsys, *arguments, "--top", 1, "--labels", labels) == (
        f"classify: expected --labels to be a text file, got {labels}, which is not UTF-8"
    )
    assert refusal(capsys, *arguments, "--top", 1, "--labels", tmp_path) == (
        f"classify: expected --labels to be a text file, got {tmp_path}"
    )


def test_classify_refuses(
    photographs: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, network = photographs[0], ("--checkpoint", checkpoint)
    assert refusal(capsys, "classify", image, *network, "--model", "resnet") == (
        "load_network: expected --model to be one of "
        "['affnet_et', 'affnet_t', 'affnet', 'affnet_base', 'affnet_large'], got 'resnet'"
    )
    assert refusal(capsys, "classify", image, *network, "--model", "affnet_t") == (
        f"load_network: expected the weights of affnet_t, got those of affnet_et in {checkpoint}"
    )
    assert refusal(capsys, "classify", image, "--checkpoint", image).startswith("read_checkpoint: expected ")
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 300)).save(small)
    assert refusal(capsys, "classify", image, small, *network) == (
        f"load_image: expected an image of at least 32 x 32 pixels, got 20 x 300 in {small}"
    )
    headless = affnet_et()
    headless.reset_classifier(0)
    for network, said in (
        (headless, "classify: expected a checkpoint with a classifier, got {} without one"),
        (
            affnet_et(in_chans=1, num_classes=2),
            "load_network: expected a network for images of 3 channels, got one for 1",
        ),
    ):
        path = tmp_path / "network.pt"
        torch.save(network.state_dict(), path)
        assert refusal(capsys, "classify", image, "--checkpoint", path) == said.format(path)


def test_the_commands_load_no_optional_package_before_they_need_it() -> None:
    """In a process of its own, as this one has loaded them all."""
    code = "import sys, affnet_kernels.__main__; print({'PIL', 'matplotlib', 'timm'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"
