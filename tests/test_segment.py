"""`segment`: maps, overlays and shares from the command line, and the networks that checkpoints tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels import __main__ as cli
from affnet_kernels.commands.segment import class_map, class_shares
from affnet_kernels.models import AFFNet, DeepLabv3, SSDLite
from affnet_kernels.models.maps import draw_overlay, overlay, palette, save_map
from affnet_kernels.models.segmenters import segmenter_from_checkpoint
from tests.networks import calibrated

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

CLASSES = ["background", "cat", "dog"]


def backbone(**options: Any) -> AFFNet:
    return AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2, **options)


def segmenter(output_stride: int = 8, activation: str = "relu") -> DeepLabv3:
    """A network that finds every class in smooth noise."""
    torch.manual_seed(0)
    network = DeepLabv3(backbone(output_stride=output_stride), 3, aspp_channels=12, activation=activation)
    images = F.interpolate(torch.rand(8, 3, 6, 9), (64, 96), mode="bicubic").clamp(0, 1)
    calibrated(network, images)
    with torch.no_grad():
        network.seg_head.classifier.block.conv.bias -= network(images).mean((0, 2, 3))
    return network


def photograph(path: Path, size: tuple[int, int] = (90, 60)) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint as `train` writes it."""
    recipe = {"size": 64, "activation": "silu", "norm": "layer_norm_2d", "options": {"output_stride": 8}}
    state = {"model_state_dict": segmenter().state_dict(), "classes": CLASSES, "recipe": recipe}
    torch.save(state, tmp_path / "best.pt")
    return tmp_path / "best.pt"


def expected_map(network: nn.Module, path: Path, seen: tuple[int, int]) -> Tensor:
    """The classes of the logits of the image at a size, stretched to its own size."""
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
    height, width = image.shape[2:]
    resized = F.interpolate(image, seen, mode="bilinear", antialias=True)
    with torch.no_grad():
        return F.interpolate(network(resized), (height, width), mode="bilinear").argmax(1)[0]


@pytest.mark.parametrize(("size", "seen"), [((90, 60), (64, 96)), ((48, 70), (96, 64))])  # W, H; H, W
def test_the_map_has_the_image_s_own_size(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int], seen: tuple[int, int]
) -> None:
    photo, out = photograph(tmp_path / "photo.png", size), tmp_path / "out.png"
    assert cli.main(["segment", str(photo), "--checkpoint", str(trained), "--out", str(out)]) == 0
    with Image.open(out) as written:
        assert written.mode == "P"
        assert written.size == size
        found = torch.from_numpy(np.array(written)).long()
        assert written.getpalette()[:9] == palette(3).flatten().tolist()
    expected = expected_map(segmenter(), photo, seen)
    assert len(expected.unique()) == 3
    assert torch.equal(found, expected)
    said = capsys.readouterr().out
    shares = {name: float(share) for share, name in re.findall(r"^ +([\d.]+) %  (\w+)$", said, re.MULTILINE)}
    for index, name in enumerate(CLASSES):
        assert shares.get(name, 0.0) == pytest.approx(100 * (found == index).float().mean().item(), abs=0.01)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert said.endswith(f"{out}\n{tmp_path / 'out.overlay.png'}\n")
    with Image.open(tmp_path / "out.overlay.png") as drawn:
        assert min(drawn.size) > 300
        assert len(set(np.array(drawn.convert("RGB")).reshape(-1, 3).sum(1).tolist())) > 50


def test_the_default_path_and_other_names(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = photograph(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("nothing\nKatze\nHund\n")
    arguments = ["segment", str(photo), "--checkpoint", str(trained), "--labels", str(tmp_path / "names.txt")]
    assert cli.main(arguments) == 0
    assert (tmp_path / "photo.map.png").exists()
    assert (tmp_path / "photo.map.overlay.png").exists()
    assert re.search(r" %  (Katze|Hund)$", capsys.readouterr().out, re.MULTILINE)


def test_a_photograph_is_seen_at_the_size_of_training_unless_told(tmp_path: Path, trained: Path) -> None:
    photo, out = photograph(tmp_path / "photo.png"), tmp_path / "out.png"
    options = ["--checkpoint", str(trained), "--out", str(out), "--size", "96", "--output-stride", "16"]
    assert cli.main(["segment", str(photo), *options]) == 0
    with Image.open(out) as written:
        found = torch.from_numpy(np.array(written)).long()
    seen = segmenter_from_checkpoint(trained, output_stride=16).network
    assert torch.equal(found, expected_map(seen, photo, (96, 144)))
    assert not torch.equal(found, expected_map(segmenter(), photo, (64, 96)))


def test_a_panorama_is_squeezed_to_steps_of_the_output_stride() -> None:
    seen: list[tuple[int, ...]] = []

    class Halves(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            logits = torch.zeros(1, 2, *images.shape[2:])
            logits[:, 1, :, images.shape[3] // 2 :] = 1
            return logits

    found = class_map(Halves(), torch.rand(3, 32, 2000), 65, 16)
    assert seen == [(1, 3, 65, 65 + 16 * 28)]
    assert found.shape == (32, 2000)
    assert not found[:, :990].any()
    assert found[:, 1010:].all()
    assert class_shares(found) == pytest.approx({0: 0.5, 1: 0.5}, abs=0.01)


# networks


def test_what_training_wrote_is_taken_and_options_go_before_it(tmp_path: Path) -> None:
    network = segmenter(16, "silu")
    recipe = {"size": 96, "activation": "silu", "options": {"output_stride": 16, "head_activation": "silu"}}
    torch.save({"model_state_dict": network.state_dict(), "classes": CLASSES, "recipe": recipe}, tmp_path / "a.pt")
    found = segmenter_from_checkpoint(tmp_path / "a.pt")
    images = torch.rand(1, 3, 64, 64)
    assert (found.classes, found.size) == (CLASSES, 96)
    with torch.no_grad():
        assert torch.equal(found.network(images), network(images))
        others = [{"output_stride": 8}, {"activation": "relu"}, {"head_activation": "relu"}, {"norm": "layer_norm"}]
        for other in others:
            changed = segmenter_from_checkpoint(tmp_path / "a.pt", **other).network
            assert not torch.equal(changed(images), network(images)), other


def test_a_file_of_another_origin(tmp_path: Path) -> None:
    network = segmenter(16)
    torch.save(network.state_dict(), tmp_path / "official.pt")
    found = segmenter_from_checkpoint(tmp_path / "official.pt")
    assert (found.classes, found.size) == (["class 0", "class 1", "class 2"], 512)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.network(images), network(images))


def test_networks_that_are_none(tmp_path: Path) -> None:
    for network, kind in (
        (backbone(num_classes=3), "those of a network for classification"),
        (SSDLite(backbone(), 3), "those of an SSDLite"),
        (nn.Linear(2, 2), "the keys weight, bias"),
    ):
        torch.save(network.state_dict(), tmp_path / "other.pt")
        expected = "segmenter_from_checkpoint: expected the weights of a DeepLabv3 on an AFFNet, got "
        with pytest.raises(ValueError, match=re.escape(f"{expected}{kind} in {tmp_path / 'other.pt'}")):
            segmenter_from_checkpoint(tmp_path / "other.pt")
    torch.save(
        {"model_state_dict": segmenter().state_dict(), "classes": ["a"], "recipe": {"size": 64}}, tmp_path / "b.pt"
    )
    with pytest.raises(ValueError, match=r"segmenter_from_checkpoint: expected 3 names of classes, got 1 in .*b\.pt"):
        segmenter_from_checkpoint(tmp_path / "b.pt")


# pictures


def test_colours_are_those_of_pascal_voc() -> None:
    assert palette(256)[[0, 1, 2, 3, 8, 20, 21]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [64, 0, 0],
        [0, 64, 128],
        [128, 64, 128],
    ]
    assert len(palette(256).unique(dim=0)) == 256


def test_the_background_shows_the_image() -> None:
    image = torch.full((3, 1, 3), 0.5)
    found = torch.tensor([[0, 1, 255]])
    drawn = overlay(image, found, CLASSES)
    assert torch.equal(drawn[0, 0], image[:, 0, 0])
    assert drawn[0, 1].tolist() == pytest.approx([0.4 * 0.5 + 0.6 * 128 / 255, 0.2, 0.2])
    assert drawn[0, 2].tolist() == pytest.approx([0.8] * 3)
    assert overlay(image, found, ["wall", "cat"])[0, 0].tolist() == pytest.approx([0.2] * 3)


def test_a_legend_of_many_classes(tmp_path: Path) -> None:
    found = torch.arange(150).repeat_interleave(4).view(20, 30)
    classes = [f"class {index}" for index in range(150)]
    draw_overlay(torch.rand(3, 20, 30), found, classes, class_shares(found), tmp_path / "many.png")
    save_map(found, classes, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as written:
        assert torch.equal(torch.from_numpy(np.array(written)).long(), found)
    with Image.open(tmp_path / "many.png") as drawn:
        assert drawn.width > drawn.height > 400


# refusals


def test_refusals(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = photograph(tmp_path / "photo.png")
    one_pixel = tmp_path / "pixel.png"
    Image.new("L", (1, 1)).save(one_pixel)
    (tmp_path / "two.txt").write_text("a\nb\n")
    for arguments, expected in (
        ([photo, "--out", tmp_path / "a.jpg"], "segment: expected --out to end in .png, got"),
        ([photo, "--out", tmp_path / "none" / "a.png"], "segment: expected --out in a folder that exists, got"),
        ([photo, "--out", photo], "segment: expected --out to be another file than the image, got"),
        ([one_pixel], "segment: expected an image of at least 32 x 32 pixels, got 1 x 1 in"),
        ([tmp_path / "none.png"], "segment: expected an image file, got"),
        ([photo, "--size", "8"], "segment: expected --size >= 32, got 8"),
        ([photo, "--labels", tmp_path / "two.txt"], "segment: expected a name a line for 3 classes, got 2 lines in"),
        ([photo, "--labels", tmp_path / "no.txt"], "segment: expected --labels to be a text file, got"),
    ):
        assert cli.main(["segment", "--checkpoint", str(trained), *map(str, arguments)]) == 2
        assert capsys.readouterr().err.startswith(expected)
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["photo.png", "pixel.png"]
    assert cli.main(["segment", str(photo), "--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "read_checkpoint: expected a file, got" in capsys.readouterr().err
