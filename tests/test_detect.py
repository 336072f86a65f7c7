"""`detect`: what it prints, draws and refuses; detectors rebuilt from their checkpoints."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("PIL", reason="Pillow is not installed")

from PIL import Image

from affnet_kernels.__main__ import main
from affnet_kernels.models import AFFNet, Detections, SSDLite, affnet_et, deeplabv3, load_checkpoint, ssdlite
from affnet_kernels.models.dense_checkpoints import detector_from_checkpoint, load_weights, training_facts
from affnet_kernels.models.drawings import Box, as_picture, boxes_to_draw, class_colour, draw_boxes, mosaic

SIZE = 96
NAMES = ["background", "cat", "tree"]


def detector(num_classes: int = 3, activation: str = "silu", head_activation: str = "relu") -> SSDLite:
    torch.manual_seed(0)
    backbone = AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2, activation=activation)
    return SSDLite(backbone, num_classes, activation=head_activation)


def certain_of_one_box(model: SSDLite, label: int) -> SSDLite:
    """Make it find one box, of that class, in any image: the last map's second anchor, nearly the whole image."""
    with torch.no_grad():
        for head in model.ssd_heads:
            for parameter in head.loc_cls_layer.parameters():
                parameter.zero_()
            conv = [module for module in head.loc_cls_layer.modules() if isinstance(module, nn.Conv2d)][-1]
            bias = conv.bias.view(-1, 4 + model.num_classes)
            bias[:, 4] = 10.0  # the background
            if head is model.ssd_heads[-1]:
                bias[1, 4 + label] = 12.0
    return model


def saved(path: Path, model: nn.Module, **beside: Any) -> Path:
    torch.save({"model_state_dict": model.state_dict(), **beside}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    recipe = {"size": SIZE, "activation": "silu", "norm": "layer_norm_2d", "options": {}}
    model = certain_of_one_box(detector(), label=2)
    return saved(tmp_path / "best.pt", model, classes=NAMES, recipe=recipe)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (400, 200), (20, 40, 60)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


# the command


def test_the_box_is_printed_and_drawn_in_the_images_own_pixels(
    checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxes.png"
    assert main(["detect", str(image), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    # A side of 0.9676 around the middle; a probability of 1 / (1 + exp(-2) + exp(-12)).
    assert capsys.readouterr().out.splitlines() == ["   88.08 %  tree                 6     3   394   197", str(out)]
    picture = Image.open(out)
    assert picture.size == (400, 200)
    changed = [(x, y) for x in range(400) for y in range(200) if picture.getpixel((x, y)) != (20, 40, 60)]
    assert (min(x for x, _ in changed), max(x for x, _ in changed)) == (6, 393)
    assert (min(y for _, y in changed), max(y for _, y in changed)) == (3, 196)
    assert picture.getpixel((393, 100)) == class_colour(2)
    assert picture.getpixel((200, 150)) == (20, 40, 60)


def test_labels_and_a_score_that_nothing_has(
    checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "boxes.png"
    labels.write_text("chat\narbre\n")
    arguments = ["detect", str(image), "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*arguments, "--labels", str(labels)]) == 0
    assert "%  arbre  " in capsys.readouterr().out
    assert main([*arguments, "--min-score", "0.9"]) == 0
    assert capsys.readouterr().out.splitlines() == ["nothing with a score above 0.9", str(out)]
    assert Image.open(out).getcolors() == [(80000, (20, 40, 60))]


def test_classes_without_names_go_by_number(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "other.pt", certain_of_one_box(detector(), label=1))
    assert main(["detect", str(image), "--checkpoint", str(file), "--out", str(tmp_path / "boxes.png")]) == 0
    assert "%  class 1  " in capsys.readouterr().out


def test_the_camera_orientation_is_applied(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    out = tmp_path / "boxes.png"
    assert main(["detect", str(tmp_path / "turned.jpg"), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert "    3     6   197   394" in capsys.readouterr().out
    assert Image.open(out).size == (200, 400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-score", "1"], r"detect: expected --min-score from 0 to below 1, got 1\.0"),
        (["--size", "16"], "detect: expected --size >= 32, got 16"),
        (["--out", "{folder}/image.png"], "detect: expected --out to be another file than the image, got .*"),
        (["--out", "{folder}/boxes.jpg"], r"detect: expected a path that ends with \.png, got .*"),
        (["--out", "{folder}/nowhere/boxes.png"], "detect: expected a path in a folder that exists, got .*"),
        (["--labels", "{folder}/image.png"], "detect: expected --labels to be a text file, got .*, which is not UTF-8"),
        (["--labels", "{folder}/none.txt"], "detect: expected --labels to be a text file, got .*none.txt"),
        (["--labels", "{folder}/one.txt"], "detect: expected a name a line for 2 classes, got 1 lines in .*one.txt"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "one.txt").write_text("cat\n")
    filled = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    out = ["--out", str(tmp_path / "boxes.png")] if "--out" not in arguments else []
    assert main(["detect", str(image), "--checkpoint", str(checkpoint), *filled, *out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.fullmatch(message, error.strip())
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


# checkpoints


def outputs(model: nn.Module) -> tuple[Tensor, ...]:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_detector_is_rebuilt(recorded: bool, tmp_path: Path) -> None:
    """From keys and shapes, and the activations from the recipe beside them, or as they are given."""
    model = detector(5, "gelu", "tanh")
    options = {"activation": "gelu", "head_activation": "tanh"}
    recipe = {"activation": "gelu", "norm": "layer_norm_2d", "options": {"head_activation": "tanh"}}
    file = saved(tmp_path / "a.pt", model, **({"recipe": recipe} if recorded else {}))
    rebuilt = detector_from_checkpoint(file, **({} if recorded else options))
    assert (rebuilt.num_classes, rebuilt.training) == (5, False)
    assert all(map(torch.equal, outputs(rebuilt), outputs(model)))


def test_an_official_detector_is_rebuilt(tmp_path: Path) -> None:
    model = ssdlite("affnet_et")
    rebuilt = detector_from_checkpoint(saved(tmp_path / "a.pt", model, epoch=3))
    assert all(map(torch.equal, outputs(rebuilt), outputs(model)))


def test_what_is_no_detector(tmp_path: Path) -> None:
    for model, kind in (
        (affnet_et(), "those of a network for classification"),
        (deeplabv3("affnet_et"), "those of a DeepLabv3"),
        (nn.Linear(2, 2), "the keys weight, bias"),
    ):
        file = saved(tmp_path / "a.pt", model)
        message = f"^detector_from_checkpoint: expected the weights of an SSDLite on an AFFNet, got {kind} in .*a.pt$"
        with pytest.raises(ValueError, match=message):
            detector_from_checkpoint(file)


def test_facts(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    facts = training_facts(saved(tmp_path / "a.pt", model, classes=NAMES, recipe={"size": 96}))
    assert facts == (NAMES, {"size": 96})
    assert training_facts(saved(tmp_path / "b.pt", model, classes=7, recipe=[1])) == (None, {})
    torch.save(model.state_dict(), tmp_path / "c.pt")
    (tmp_path / "d.pt").write_text("no checkpoint")
    for name in ("c.pt", "d.pt", "e.safetensors"):
        assert training_facts(tmp_path / name) == (None, {})


def test_a_start_from_weights(tmp_path: Path) -> None:
    """A classification network's go into the encoder; a detector's go everywhere but to another number of classes."""
    backbone = AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2)
    model = detector()
    head = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("encoder.")}
    load_weights(model, saved(tmp_path / "a.pt", backbone))
    for key, value in model.state_dict().items():
        expected = head[key] if key in head else backbone.state_dict()[key.removeprefix("encoder.")]
        assert torch.equal(value, expected), key
    other = detector(7)
    load_weights(other, saved(tmp_path / "b.pt", model))
    assert torch.equal(other.encoder.conv_1.block.conv.weight, model.encoder.conv_1.block.conv.weight)
    assert other.num_classes == 7
    same = detector()
    load_weights(same, tmp_path / "b.pt")
    load_checkpoint(other := detector(), tmp_path / "b.pt")
    for mine, theirs in ((same, model), (other, model)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)


# drawing


def test_boxes_beyond_the_image_and_without_numbers() -> None:
    image = Image.new("RGB", (60, 40))
    boxes = [
        Box((-1e9, 10, 1e9, 30), "wide", 1, 0.9),
        Box((float("nan"), 0, 5, 5), "none", 2, 0.8),
        Box((70, 50, 90, 80), "outside", 3, 0.7),
        Box((5, 5, float("inf"), 20), "endless", 4, 0.6),
    ]
    drawn = draw_boxes(image, boxes)
    assert drawn.size == (60, 40)
    assert image.getcolors() == [(2400, (0, 0, 0))]  # a copy was drawn on
    assert drawn.getpixel((30, 29)) == class_colour(1)
    colours = {colour for _, colour in drawn.getcolors(2400)}
    assert class_colour(2) not in colours
    assert class_colour(3) not in colours


def test_the_better_box_is_on_top() -> None:
    boxes = [Box((5, 5, 50, 35), "a", 1, 0.9), Box((5, 5, 50, 35), "b", 2, 0.5)]
    for order in (boxes, boxes[::-1]):
        assert draw_boxes(Image.new("RGB", (60, 40)), order).getpixel((49, 30)) == class_colour(1)


def test_what_was_found_in_pixels() -> None:
    found = Detections(torch.tensor([[0.1, 0.2, 0.5, 1.0]]), torch.tensor([0.75]), torch.tensor([2]))
    (box,) = boxes_to_draw(found, (200, 100), NAMES)
    assert box.corners == pytest.approx((20, 20, 100, 100))
    assert box[1:] == ("tree", 2, 0.75)


def test_pictures_of_tensors_side_by_side() -> None:
    pixels = torch.zeros(3, 4, 6)
    pixels[0, 1, 2] = 1.0
    pixels[1, 3, 5] = 0.5
    picture = as_picture(pixels)
    assert picture.size == (6, 4)
    assert picture.getpixel((2, 1)) == (255, 0, 0)
    assert picture.getpixel((5, 3)) == (0, 128, 0)
    assert mosaic([picture] * 5, side=10).size == (40, 20)
    assert mosaic([picture], side=10).size == (10, 10)


def test_the_command_needs_no_torchvision(
    checkpoint: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    out = tmp_path / "boxes.png"
    assert main(["detect", str(image), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
