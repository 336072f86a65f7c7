"""DeepLabv3 and SSDLite: counts, keys, formulas, and the outputs of the official networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels.models import (
    AFFNet,
    DeepLabv3,
    SSDLite,
    affnet_et,
    create_model,
    decode_boxes,
    deeplabv3,
    encode_boxes,
    fuse_for_inference,
    load_checkpoint,
    ssdlite,
)
from affnet_kernels.models.layers import NORMS
from affnet_kernels.models.token_mixers import MIXERS
from tests.networks import (
    PUBLISHED,
    calibrated,
    images,
    official_dense_outputs,
    official_state_dict,
    seeded_state_dict,
)

DEEPLAB_PARAMETERS = {
    ("affnet_et", 21): 2_180_373,
    ("affnet_t", 21): 3_497_797,
    ("affnet", 21): 7_010_405,
    ("affnet_et", 150): 2_213_526,
    ("affnet_t", 150): 3_530_950,
    ("affnet", 150): 7_043_558,
}
SSD_PARAMETERS = {"affnet_et": 1_659_386, "affnet_t": 2_674_234, "affnet": 5_352_666}
BACKBONE_PARAMETERS = {"affnet_et": 775_168, "affnet_t": 1_736_240, "affnet": 4_298_576}
LAST_CHANNELS = {"affnet_et": (104, 144), "affnet_t": (160, 192), "affnet": (256, 320)}
BUILDERS = {"deeplabv3": deeplabv3, "ssdlite": ssdlite}


def backbone(**options: Any) -> AFFNet:
    return AFFNet((8, 8, 8, 16, 24), (1, 2, 1, 2, 1), 2, **options)


def segmenter(output_stride: int = 16, **options: Any) -> DeepLabv3:
    torch.manual_seed(0)
    return DeepLabv3(backbone(output_stride=output_stride), 5, aspp_channels=12, **options)


def detector(num_classes: int = 4, **options: Any) -> SSDLite:
    torch.manual_seed(0)
    return SSDLite(backbone(**options), num_classes)


DENSE: dict[str, Callable[[], nn.Module]] = {"DeepLabv3": segmenter, "SSDLite": detector}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def leaves(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


# parameters and keys


@pytest.mark.parametrize(("name", "num_classes"), DEEPLAB_PARAMETERS)
def test_deeplabv3_has_its_parameters(name: str, num_classes: int) -> None:
    model = deeplabv3(name, num_classes)
    assert count(model) == DEEPLAB_PARAMETERS[name, num_classes]
    assert count(model.encoder) == BACKBONE_PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_ssdlite_has_its_parameters(name: str) -> None:
    model = ssdlite(name)
    assert count(model) == SSD_PARAMETERS[name]
    assert count(model.encoder) == BACKBONE_PARAMETERS[name]


def norm_keys(prefix: str, channels: int) -> dict[str, list[int]]:
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{entry}": [channels] for entry in entries} | {f"{prefix}.num_batches_tracked": []}


def conv_keys(prefix: str, *shape: int) -> dict[str, list[int]]:
    return {f"{prefix}.block.conv.weight": list(shape)} | norm_keys(f"{prefix}.block.norm", shape[0])


def plain_keys(prefix: str, *shape: int) -> dict[str, list[int]]:
    return {f"{prefix}.block.conv.weight": list(shape), f"{prefix}.block.conv.bias": [shape[0]]}


def encoder_keys(name: str) -> dict[str, list[int]]:
    official = official_state_dict(name, "layer_norm_2d")
    return {
        f"encoder.{key}": shape
        for key, shape in official.items()
        if not key.startswith(("conv_1x1_exp.", "classifier."))
    }


def shapes(model: nn.Module) -> list[tuple[str, list[int]]]:
    return [(key, list(value.shape)) for key, value in model.state_dict().items()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_keys_of_deeplabv3(name: str) -> None:
    channels, aspp = LAST_CHANNELS[name][1], "seg_head.aspp.aspp_layer"
    expected = encoder_keys(name) | conv_keys(f"{aspp}.convs.0", 256, channels, 1, 1)
    for branch in (1, 2, 3):
        expected |= conv_keys(f"{aspp}.convs.{branch}", 256, channels, 3, 3)
    expected |= conv_keys(f"{aspp}.convs.4.aspp_pool.conv_1x1", 256, channels, 1, 1)
    expected |= conv_keys(f"{aspp}.project", 256, 5 * 256, 1, 1)
    expected |= plain_keys("seg_head.classifier", 21, 256, 1, 1)
    assert shapes(deeplabv3(name)) == list(expected.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_keys_of_ssdlite(name: str) -> None:
    fourth, fifth = LAST_CHANNELS[name]
    expected = encoder_keys(name)
    for stride, inputs, outputs in ((64, fifth, 256), (128, 256, 128), (256, 128, 128)):
        expected |= conv_keys(f"extra_layers.os_{stride}.dw_conv", inputs, 1, 3, 3)
        expected |= conv_keys(f"extra_layers.os_{stride}.pw_conv", outputs, inputs, 1, 1)
    expected["extra_layers.os_-1.1.block.conv.weight"] = [64, 128, 1, 1]
    expected |= conv_keys("ssd_heads.0.proj_layer", 512, fourth, 1, 1)
    for head, channels in enumerate((512, 256, 256, 128, 128)):
        if head == 1:
            expected |= conv_keys("ssd_heads.1.proj_layer", 256, fifth, 1, 1)
        expected |= conv_keys(f"ssd_heads.{head}.loc_cls_layer.dw_conv", channels, 1, 3, 3)
        expected |= plain_keys(f"ssd_heads.{head}.loc_cls_layer.pw_conv", 6 * 85, channels, 1, 1)
    expected |= plain_keys("ssd_heads.5.loc_cls_layer", 4 * 85, 64, 1, 1)
    assert shapes(ssdlite(name)) == list(expected.items())


# outputs


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_outputs_of_deeplabv3_are_the_official_ones(name: str) -> None:
    model = deeplabv3(name).eval()
    model.load_state_dict(seeded_state_dict(model))
    (expected,) = official_dense_outputs("deeplabv3", name)
    with torch.no_grad():
        torch.testing.assert_close(model(images())[..., 3::36, 3::36], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_outputs_of_ssdlite_are_the_official_ones(name: str) -> None:
    model = ssdlite(name).eval()
    model.load_state_dict(seeded_state_dict(model))
    with torch.no_grad():
        for got, expected in zip(model(images()), official_dense_outputs("ssdlite", name), strict=True):
            torch.testing.assert_close(got[:, ::97], expected, rtol=0, atol=5e-6)


# DeepLabv3's formulas


def conv_norm_relu(state: dict[str, Tensor], prefix: str, x: Tensor, rate: int = 1) -> Tensor:
    """A convolution as a sum of shifted maps, its norm, and ReLU, from the weights under the official keys."""
    weight = state[f"{prefix}.block.conv.weight"]
    size, (height, width) = weight.shape[-1], x.shape[2:]
    padded = F.pad(x, [size // 2 * rate] * 4)
    y = sum(
        torch.einsum(
            "oc,bchw->bohw",
            weight[:, :, i, j],
            padded[..., i * rate : i * rate + height, j * rate : j * rate + width],
        )
        for i in range(size)
        for j in range(size)
    )
    gamma, beta, mean, variance = (
        state[f"{prefix}.block.norm.{entry}"][:, None, None]
        for entry in ("weight", "bias", "running_mean", "running_var")
    )
    return torch.relu((y - mean) / (variance + 1e-5).sqrt() * gamma + beta)


def stretch(inputs: int, outputs: int) -> Tensor:  # [outputs, inputs]
    """Linear interpolation of a row whose first and last pixels stay the first and the last: align_corners=True."""
    places = np.linspace(0, inputs - 1, outputs)
    rows = [np.interp(places, np.arange(inputs), unit) for unit in np.eye(inputs)]
    return torch.from_numpy(np.stack(rows, axis=1))


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_deeplabv3_is_its_formula(output_stride: int) -> None:
    torch.manual_seed(0)
    model = segmenter(output_stride).double()
    images = torch.randn(2, 3, 200, 168, dtype=torch.float64)
    calibrated(model, images)
    state, aspp = model.state_dict(), "seg_head.aspp.aspp_layer"
    with torch.no_grad():
        x = model.encoder(images)
        branches = [conv_norm_relu(state, f"{aspp}.convs.{i}", x, rate) for i, rate in enumerate((1, 6, 12, 18))]
        pooled = conv_norm_relu(state, f"{aspp}.convs.4.aspp_pool.conv_1x1", x.mean((2, 3), keepdim=True))
        y = conv_norm_relu(state, f"{aspp}.project", torch.cat([*branches, pooled.expand_as(branches[0])], dim=1))
        weight, bias = (state[f"seg_head.classifier.block.conv.{entry}"] for entry in ("weight", "bias"))
        y = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], y) + bias[:, None, None]
        rows, columns = stretch(y.shape[2], 200), stretch(y.shape[3], 168)
        expected = torch.einsum("yh,bchw,xw->bcyx", rows, y, columns)
        got = model(images)
    assert x.shape[2:] == (math.ceil(200 / output_stride), math.ceil(168 / output_stride))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(513, 513), (40, 61), (1, 1)])
def test_deeplabv3_gives_maps_of_the_images_size(output_stride: int, size: tuple[int, int]) -> None:
    model = segmenter(output_stride).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        logits = model(images)
        small = model.seg_head(model.encoder(images))
    assert logits.shape == (1, 5, *size)
    assert small.shape[2:] == tuple(math.ceil(side / output_stride) for side in size)
    if size == (513, 513):  # 16 n + 1: every 16th pixel is one of the map's
        torch.testing.assert_close(logits[..., ::output_stride, ::output_stride], small, rtol=0, atol=1e-5)


def test_dropout_is_of_whole_channels_and_in_training_only() -> None:
    dropout = segmenter(drop_rate=0.5).seg_head.aspp.aspp_layer.dropout_layer
    y = dropout(torch.ones(8, 64, 3, 3))
    assert {0.0, 2.0} == set(y.unique().tolist())
    assert torch.equal(y, y[..., :1, :1].expand_as(y))
    model = segmenter(drop_rate=0.5).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), model(images))
    assert deeplabv3("affnet_et").seg_head.aspp.aspp_layer.dropout_layer.p == 0.1


def test_deeplabv3_initialises_as_pytorch_does() -> None:
    torch.manual_seed(0)
    model = deeplabv3("affnet_et")
    for conv in (module for module in model.seg_head.modules() if isinstance(module, nn.Conv2d)):
        fan_in = conv.weight[0].numel()
        assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.03)
        assert conv.weight.abs().max() <= 1 / math.sqrt(fan_in)
    assert model.seg_head.classifier.block.conv.bias.abs().max() > 0


# SSDLite's formulas


def reference_anchors(height: int, width: int) -> np.ndarray[Any, Any]:  # [A, 4]
    scales = np.linspace(0.1, 1.05, 7)
    anchors = []
    for level, stride in enumerate((16, 32, 64, 128, 256, None)):
        small, large = scales[level], math.sqrt(scales[level] * scales[level + 1])
        rows, columns = (1, 1) if stride is None else (math.ceil(height / stride), math.ceil(width / stride))
        for row in range(rows):
            for column in range(columns):
                centre = (column + 0.5) / columns, (row + 0.5) / rows
                anchors += [(*centre, small, small), (*centre, large, large)]
                for ratio in (2, 3) if stride else (2,):
                    anchors.append((*centre, small * ratio**0.5, small / ratio**0.5))
                    anchors.append((*centre, small / ratio**0.5, small * ratio**0.5))
    return np.clip(np.array(anchors), 0, 1)


@pytest.mark.parametrize("size", [320, (320, 320), (256, 512), (321, 199), (32, 32), 1])
def test_the_anchors_are_their_formula(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    anchors = detector().anchors(size)
    assert anchors.dtype == torch.float32
    np.testing.assert_allclose(anchors.numpy(), reference_anchors(height, width), rtol=0, atol=1e-6)


def test_the_anchors_by_hand() -> None:
    anchors = detector().anchors(320)
    assert len(anchors) == 6 * (400 + 100 + 25 + 9 + 4) + 4 == 3232
    # Scales 0.1, 0.2583, ..., 1.05; the first pixel of 20 x 20, its right neighbour, the one below it.
    rows = {
        0: (0.025, 0.025, 0.1, 0.1),
        1: (0.025, 0.025, 0.160728, 0.160728),
        2: (0.025, 0.025, 0.141421, 0.070711),
        3: (0.025, 0.025, 0.070711, 0.141421),
        4: (0.025, 0.025, 0.173205, 0.057735),
        5: (0.025, 0.025, 0.057735, 0.173205),
        6: (0.075, 0.025, 0.1, 0.1),
        120: (0.025, 0.075, 0.1, 0.1),
        2400: (0.05, 0.05, 0.258333, 0.258333),
        3228: (0.5, 0.5, 0.891667, 0.891667),
        3229: (0.5, 0.5, 0.967600, 0.967600),
        3230: (0.5, 0.5, 1.0, 0.630504),
        3231: (0.5, 0.5, 0.630504, 1.0),
    }
    torch.testing.assert_close(anchors[list(rows)], torch.tensor(list(rows.values())), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(320, 320), (321, 199), (512, 256), (32, 32), (1, 1)])
def test_there_is_a_prediction_for_each_anchor(size: tuple[int, int]) -> None:
    model = detector().eval()
    with torch.no_grad():
        scores, offsets = model(torch.randn(2, 3, *size))
    count = len(model.anchors(size))
    assert scores.shape == (2, count, 4)
    assert offsets.shape == (2, count, 4)


def test_ssdlite_is_its_formula() -> None:
    torch.manual_seed(0)
    model = detector().double()
    images = torch.randn(2, 3, 320, 192, dtype=torch.float64)
    calibrated(model, images)
    state = model.state_dict()

    def depthwise(prefix: str, x: Tensor, stride: int = 1) -> Tensor:
        y = F.conv2d(x, state[f"{prefix}.block.conv.weight"], stride=stride, padding=1, groups=x.shape[1])
        gamma, beta, mean, variance = (
            state[f"{prefix}.block.norm.{entry}"] for entry in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(y, mean, variance, gamma, beta)

    def plain(prefix: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{prefix}.block.conv.weight"], state.get(f"{prefix}.block.conv.bias"))

    with torch.no_grad():
        maps = model.encoder.forward_intermediates(images, (3, 4), intermediates_only=True)
        for stride in (64, 128, 256):
            name = f"extra_layers.os_{stride}"
            maps.append(conv_norm_relu(state, f"{name}.pw_conv", depthwise(f"{name}.dw_conv", maps[-1], 2)))
        maps.append(torch.relu(plain("extra_layers.os_-1.1", maps[-1].mean((2, 3), keepdim=True))))
        expected = []
        for head, x in enumerate(maps):
            name = f"ssd_heads.{head}"
            if head < 2:
                x = conv_norm_relu(state, f"{name}.proj_layer", x)
            if head < 5:
                y = plain(f"{name}.loc_cls_layer.pw_conv", depthwise(f"{name}.loc_cls_layer.dw_conv", x))
            else:
                y = plain(f"{name}.loc_cls_layer", x)
            # As the anchors: row by row, pixel by pixel, anchor by anchor; four offsets before the classes.
            for row in range(y.shape[2]):
                for column in range(y.shape[3]):
                    expected += y[:, :, row, column].split(4 + 4, dim=1)
        expected = torch.stack(expected, dim=1)
        scores, offsets = model(images)
    torch.testing.assert_close(torch.cat((offsets, scores), dim=-1), expected, rtol=0, atol=1e-10)


def test_ssdlite_initialises_by_xavier() -> None:
    torch.manual_seed(0)
    model = ssdlite("affnet_et")
    convs = [
        module
        for part in (model.extra_layers, model.ssd_heads)
        for module in part.modules()
        if isinstance(module, nn.Conv2d)
    ]
    assert len(convs) == 3 * 2 + 1 + 2 + 5 * 2 + 1
    for conv in convs:
        receptive = conv.kernel_size[0] * conv.kernel_size[1]
        fans = receptive * (conv.weight.shape[0] + conv.weight.shape[1])
        bound = math.sqrt(6 / fans)
        assert conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert conv.bias is None or not conv.bias.any()
    deviation = model.encoder.layer_1[0].block.exp_1x1.block.conv.weight.std().item()
    assert deviation == pytest.approx(1 / math.sqrt(3 * 16), rel=0.1)  # as in AFFNet


# boxes


def test_decode_by_hand() -> None:
    anchors = torch.tensor([[0.5, 0.25, 0.2, 0.4], [0.5, 0.25, 0.2, 0.4]])
    offsets = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 5 * math.log(2), -5 * math.log(4)]])
    expected = torch.tensor([[0.4, 0.05, 0.6, 0.45], [0.32, 0.12, 0.72, 0.22]])
    torch.testing.assert_close(decode_boxes(offsets, anchors), expected)


def test_encode_is_the_inverse_of_decode() -> None:
    torch.manual_seed(0)
    anchors = detector().anchors(320).double()
    offsets = 2 * torch.randn(3, len(anchors), 4, dtype=torch.float64)
    boxes = decode_boxes(offsets, anchors)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    torch.testing.assert_close(encode_boxes(boxes, anchors), offsets)


def naive_detections(
    scores: Tensor, boxes: Tensor, min_score: float, max_overlap: float, top_k: int, most: int
) -> list[tuple[float, int, tuple[float, ...]]]:
    """Class by class, box by box."""
    probabilities = torch.softmax(scores, dim=-1)
    kept = []
    for label in range(1, scores.shape[-1]):
        order = sorted(range(len(boxes)), key=lambda i: -probabilities[i, label].item())
        order = [i for i in order if probabilities[i, label] > min_score][:top_k]
        of_class: list[int] = []
        for i in order:
            if all(overlap(boxes[i].tolist(), boxes[j].tolist()) <= max_overlap for j in of_class):
                of_class.append(i)
        kept += [(probabilities[i, label].item(), label, tuple(boxes[i].tolist())) for i in of_class]
    return sorted(kept, reverse=True)[:most]


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_detections_are_those_of_a_naive_search() -> None:
    torch.manual_seed(0)
    model = detector(num_classes=3)
    anchors = model.anchors((64, 48))
    scores, offsets = 2 * torch.randn(2, len(anchors), 3), torch.randn(2, len(anchors), 4)
    options = {"min_score": 0.2, "max_overlap": 0.3, "top_k": 40, "max_detections": 15}
    found = model.detections(scores, offsets, (64, 48), **options)
    assert len(found) == 2
    for image, detections in enumerate(found):
        boxes = decode_boxes(offsets[image], anchors)
        expected = naive_detections(scores[image], boxes, *options.values())
        assert 5 < len(expected) <= 15
        assert detections.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(detections.scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(detections.boxes, torch.tensor([box for _, _, box in expected]))


def test_an_image_with_nothing_in_it() -> None:
    model = detector()
    scores, offsets = torch.zeros(1, 3232, 4), torch.zeros(1, 3232, 4)
    scores[..., 0] = 20  # the background
    (found,) = model.detections(scores.half(), offsets.half(), 320)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
    assert found.labels.dtype == torch.int64


# both


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(
    "options",
    [*({"mixer": mixer} for mixer in MIXERS), *({"norm": norm} for norm in NORMS), {"activation": "gelu"}],
    ids=str,
)
def test_the_options_of_affnet(kind: str, options: dict[str, str]) -> None:
    model = BUILDERS[kind]("affnet_et", 3, img_size=96, **options).eval()
    assert {name: model.encoder.options[name] for name in options} == options
    with torch.no_grad():
        assert all(output.isfinite().all() for output in leaves(model(torch.randn(1, 3, 96, 96))))


def test_the_defaults_are_the_published_settings() -> None:
    assert deeplabv3("affnet_et", mixer="mlp").encoder.layer_5[1].global_rep[0].filter.map_size == (32, 32)
    assert ssdlite("affnet_et", mixer="mlp").encoder.layer_5[1].global_rep[0].filter.map_size == (10, 10)
    for model in (deeplabv3("affnet_et"), ssdlite("affnet_et")):
        assert model.encoder.options["mixer"] == "fused"
        assert model.encoder.options["activation"] == "silu"


@pytest.mark.parametrize("kind", DENSE)
def test_the_activation_of_the_head_is_its_own(kind: str) -> None:
    build = DeepLabv3 if kind == "DeepLabv3" else SSDLite
    for activation, module in (("relu", nn.ReLU), ("silu", nn.SiLU)):
        model = build(backbone(activation="tanh"), 3, activation=activation)
        head = [child for name, child in model.named_modules() if name.endswith("act") and "encoder" not in name]
        assert head
        assert {type(child) for child in head} == {module}
        assert {type(child) for name, child in model.encoder.named_modules() if name.endswith("act")} == {nn.Tanh}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", DENSE)
def test_a_training_step(kind: str, compiled: bool) -> None:
    model = DENSE[kind]().train()
    run = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    torch.manual_seed(1)
    sum(output.square().mean() for output in leaves(run(torch.randn(2, 3, 96, 64)))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    head = model.seg_head if isinstance(model, DeepLabv3) else model.ssd_heads
    assert all(parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("kind", DENSE)
def test_the_copy_for_inference_gives_the_same(kind: str) -> None:
    model = calibrated(DENSE[kind](), torch.randn(2, 3, 128, 96))
    fused = fuse_for_inference(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    images = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        for got, expected in zip(leaves(fused(images)), leaves(model(images)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", DENSE)
def test_the_traced_network_gives_the_same(kind: str, train: bool) -> None:
    model = DENSE[kind]().train(train)
    traced = torch.fx.symbolic_trace(model)
    images = torch.randn(2, 3, 64, 96)
    torch.manual_seed(1)
    expected = leaves(model(images))
    torch.manual_seed(1)
    assert all(map(torch.equal, leaves(traced(images)), expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", DENSE)
def test_other_dtypes(kind: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(DENSE[kind]()).eval().to(dtype)
    with torch.no_grad():
        assert {output.dtype for output in leaves(model(torch.randn(1, 3, 64, 64, dtype=dtype)))} == {dtype}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: deeplabv3("affnet_et", 0), "DeepLabv3: expected num_classes >= 1, got 0"),
        (lambda: DeepLabv3(backbone(), aspp_channels=0), "DeepLabv3: expected aspp_channels >= 1, got 0"),
        (lambda: DeepLabv3(backbone(), rates=(6, 0)), r"DeepLabv3: expected rates >= 1, got \(6, 0\)"),
        (lambda: DeepLabv3(backbone(), drop_rate=1.0), r"DeepLabv3: expected 0 <= drop_rate < 1, got 1\.0"),
        (lambda: DeepLabv3(backbone(), activation="elu"), r"DeepLabv3: expected activation to be one of .*, got 'elu'"),
        (lambda: deeplabv3("affnet_et", output_stride=4), "AFFNet: expected output_stride to be 32, 16 or 8, got 4"),
        (lambda: deeplabv3("resnet"), r"create_model: expected one of \['affnet_et', .*\], got 'resnet'"),
        (lambda: ssdlite("affnet_et", 1), "SSDLite: expected num_classes >= 2, the background counted, got 1"),
        (lambda: ssdlite("affnet_et", 0), "SSDLite: expected num_classes >= 2, the background counted, got 0"),
        (lambda: ssdlite("affnet_et", output_stride=16), "SSDLite: expected a backbone of output_stride 32, got 16"),
        (lambda: SSDLite(backbone(), activation="elu"), r"SSDLite: expected activation to be one of .*, got 'elu'"),
        (lambda: detector().anchors(0), "anchors: expected size as H and W, both >= 1, got 0"),
        (lambda: detector().anchors((1, 2, 3)), r"anchors: expected size as H and W, both >= 1, got \(1, 2, 3\)"),
    ],
)
def test_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()


def test_a_refused_backbone_stays_whole() -> None:
    whole = backbone()
    with pytest.raises(ValueError, match="num_classes"):
        DeepLabv3(whole, 0)
    with pytest.raises(ValueError, match="num_classes"):
        SSDLite(whole, 0)
    assert whole(torch.randn(2, 3, 32, 32)).shape == (2, 1000)


def test_one_image_in_training() -> None:
    image = torch.randn(1, 3, 64, 64)
    model = segmenter()
    message = (
        r"^DeepLabv3: expected at least 2 images in training, got 1; one needs the BatchNorm of "
        r"seg_head\.aspp\.aspp_layer\.convs\[-1\] in eval mode$"
    )
    with pytest.raises(ValueError, match=message):
        model(image)
    model.seg_head.aspp.aspp_layer.convs[-1].eval()
    assert model(image).shape == (1, 5, 64, 64)
    with pytest.raises(
        ValueError,
        match=r"^SSDLite: expected at least 2 images in training, or H or W above 256, got \[1, 3, 64, 64\]$",
    ):
        detector()(image)
    assert detector()(torch.randn(1, 3, 257, 33))[0].shape[0] == 1


def test_predictions_for_another_size() -> None:
    message = r"^detections: expected predictions at the 2050 anchors of size 256, got 3232$"
    with pytest.raises(ValueError, match=message):
        detector().detections(torch.zeros(1, 3232, 4), torch.zeros(1, 3232, 4), 256)


# checkpoints


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_official_checkpoint_loads(kind: str, tmp_path: Path) -> None:
    source, model = (BUILDERS[kind]("affnet_et", 7) for _ in range(2))
    wrapped = {f"module.{key}": value for key, value in source.state_dict().items()}
    load_checkpoint(model, saved({"model_state_dict": wrapped, "epoch": 3}, tmp_path / "a.pt"))
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_classification_checkpoint_loads_into_the_encoder(kind: str, tmp_path: Path) -> None:
    source, model = affnet_et(), BUILDERS[kind]("affnet_et", 7)
    before = copy.deepcopy(model.state_dict())
    load_checkpoint(model.encoder, saved(source.state_dict(), tmp_path / "a.pt"))
    given = source.state_dict()
    for key, value in model.state_dict().items():
        expected = given[key.removeprefix("encoder.")] if key.startswith("encoder.") else before[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_new_classifier(kind: str, tmp_path: Path) -> None:
    source, model = BUILDERS[kind]("affnet_et", 9), BUILDERS[kind]("affnet_et", 7)
    path = saved(source.state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"of another shape .*; new_classifier=True keeps the network's own classifier$"
    ):
        load_checkpoint(model, path)
    before, given = copy.deepcopy(model.state_dict()), source.state_dict()
    load_checkpoint(model, path, new_classifier=True)
    kept = [key for key, value in model.state_dict().items() if value.shape != given[key].shape]
    assert len(kept) == (2 if kind == "deeplabv3" else 12)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in kept else given[key]), key


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            affnet_et,
            r"expected the weights of DeepLabv3, got those of affnet_et \(layer_norm_2d, 1000 classes, in_chans=3\) in "
            r".*a\.pt: 446 missing \(.*\), 416 unexpected \(.*\); load_checkpoint\(model\.encoder, \.\.\.\) loads them "
            "into the encoder, and the head stays as it is$",
        ),
        (
            lambda: deeplabv3("affnet_t"),
            r"expected the weights of DeepLabv3, got .*a\.pt with the keys encoder\.conv_1\.block\.conv\.weight, .*, "
            r"of a DeepLabv3 or SSDLite on affnet_t: \d+ of another shape \(encoder\..*\)$",
        ),
        (
            lambda: ssdlite("affnet_et", 21),
            r"of a DeepLabv3 or SSDLite on affnet_et: 38 missing \(seg_head\..*\), 91 unexpected \(extra_layers\..*\)$",
        ),
    ],
)
def test_a_mismatch_says_what_and_loads_nothing(build: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    model = deeplabv3("affnet_et")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, saved(build().state_dict(), tmp_path / "a.pt"))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_encoder_refuses_another_network(tmp_path: Path) -> None:
    path = saved(create_model("affnet_t").state_dict(), tmp_path / "a.pt")
    message = (
        r"expected the weights of affnet_et \(layer_norm_2d, no classifier, in_chans=3\), got those of affnet_t "
        r"\(layer_norm_2d, no classifier, .*: \d+ of another shape .*; build affnet_t, as from_checkpoint does$"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(ssdlite("affnet_et").encoder, path)
