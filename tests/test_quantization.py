"""What is int8 in a quantised file and what is not, how near it is to float32, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from affnet_kernels import AFFMixer
from affnet_kernels import __main__ as cli
from affnet_kernels.commands import export as command
from affnet_kernels.export import Exported, export_onnx, quantize_onnx
from affnet_kernels.export.onnx import load_onnx
from affnet_kernels.export.quantization import MIXER_WEIGHTS
from affnet_kernels.models.aff_block import AFFBlock
from affnet_kernels.models.layers import ConvLayer, InvertedResidual
from tests.networks import calibrated, seeded_state_dict

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = 64


class Files(NamedTuple):
    float32: Path
    int8: Path
    quantised: Exported
    images: Tensor  # [N, 3, SIZE, SIZE]


def network() -> nn.Module:
    """The parts of an AFFNet, with a mixer that changes its maps as much as its convolutions do."""
    block = AFFBlock(
        16,
        1,
        fusion=True,
        mixer="fused",
        map_size=(16, 16),
        activation="silu",
        norm="layer_norm_2d",
        drop_path_rates=[0],
    )
    layers = ConvLayer(3, 16, 3, stride=2, activation="silu"), InvertedResidual(16, 16, 2, stride=2, activation="silu")
    model = nn.Sequential(*layers, block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model.load_state_dict(seeded_state_dict(model))
    mixer = block.global_rep[0].filter
    mixer.w2.data *= 8
    return calibrated(model, structured_images(16))


def structured_images(count: int) -> Tensor:  # [count, 3, SIZE, SIZE]
    """Blurred noise, of another contrast and brightness for each image."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * torch.rand(count, 3, 1, 1, generator=generator)
    return nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    images = structured_images(32)
    export_onnx(network(), folder / "float32.onnx", size=SIZE)
    quantised = quantize_onnx(folder / "float32.onnx", folder / "int8.onnx", images.split(5))
    return Files(folder / "float32.onnx", folder / "int8.onnx", quantised, images)


def outputs(path: Path, images: Tensor) -> Tensor:
    run = load_onnx(path)
    assert run is not None
    return torch.from_numpy(run(images)[0])


def test_layers_are_int8_and_mixers_float32(files: Files) -> None:
    graph = onnx.load(files.int8).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    layers = mixers = early = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        if node.input[1] in tensors:
            assert tensors[node.input[1]].data_type == onnx.TensorProto.FLOAT
            if node.input[1].rpartition(".")[2] in MIXER_WEIGHTS:
                mixers += 1
            else:
                assert not mixers
                early += 1
            continue
        value, weight = makers[node.input[0]], makers[node.input[1]]
        assert value.op_type == weight.op_type == "DequantizeLinear"
        assert list(tensors[value.input[1]].dims) == []  # one range for the tensor
        assert tensors[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert list(tensors[weight.input[1]].dims) == [tensors[weight.input[0]].dims[0]]  # one for each output channel
        layers += 1
    model = network()
    assert early == 7  # the first layer and the two inverted residuals
    assert early + layers == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert mixers == 6 * sum(isinstance(module, AFFMixer) for module in model.modules())


def test_nothing_is_quantised_between_a_mixers_transforms(files: Files) -> None:
    graph = onnx.load(files.int8).graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    starts = [node for node in graph.node if any(name.endswith("analysis_w") for name in node.input)]
    assert len(starts) == 1
    for start in starts:
        found, waiting = set(), [start]
        while waiting:
            node = waiting.pop()
            if node.name in found or any(name.endswith("synthesis_w") for name in node.input):
                continue
            found.add(node.name)
            assert "Quantize" not in node.op_type
            waiting += [reader for name in node.output for reader in readers.get(name, [])]
        assert len(found) > 10


def test_outputs_are_near_those_of_float32(files: Files) -> None:
    expected, got = outputs(files.float32, files.images), outputs(files.int8, files.images)
    assert (got - expected).norm() <= 0.1 * expected.norm()
    assert expected.argmax(1).unique().numel() > 1
    assert (got.argmax(1) == expected.argmax(1)).double().mean() >= 0.9
    assert files.quantised.error == pytest.approx((got - expected).abs().max().item(), rel=0.2)
    torch.testing.assert_close(outputs(files.int8, files.images[:1]), got[:1])


def test_the_operators_are_standard_and_onnxruntime_fuses_silu(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(files.int8)
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert files.quantised.path == files.int8
    assert files.quantised.operators == tuple(sorted({node.op_type for node in proto.graph.node}))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(files.int8, options, providers=["CPUExecutionProvider"])
    optimised = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert {"QLinearConv", "QGemm", "QuickGelu"} <= optimised
    assert "Sigmoid" not in optimised


def test_other_layers_and_a_mixer_beside_a_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), AFFMixer(8, 2), nn.Linear(6, 7), nn.Sigmoid())
    export_onnx(model, tmp_path / "a.onnx", size=(4, 8, 8), dynamic_batch=False)
    exported = quantize_onnx(tmp_path / "a.onnx", tmp_path / "a.onnx", [torch.randn(8, 4, 8, 8)])  # in its own place
    assert exported.error is not None
    assert exported.error <= 0.02
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in graph.initializer) == 1


IMAGES = torch.rand(2, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("calibration", "kind", "message"),
    [
        ([], ValueError, "quantize_onnx: expected images for calibration, got none"),
        ([IMAGES[:0]], ValueError, "quantize_onnx: expected images for calibration, got none"),
        (
            [IMAGES, IMAGES[..., :32]],
            ValueError,
            r"expected images \[B, 3, 64, 64\] for calibration, got \[2, 3, 64, 32\]",
        ),
        (IMAGES, ValueError, r"expected images \[B, 3, 64, 64\] for calibration, got \[3, 64, 64\]"),
        ([IMAGES.double()], TypeError, "expected calibration as float32 tensors, got torch.float64"),
        ([IMAGES.numpy()], TypeError, "expected calibration as float32 tensors, got ndarray"),
        ([IMAGES / 0], ValueError, "expected finite images for calibration, got some with infinity or NaN"),
    ],
)
def test_bad_calibration(calibration: Any, kind: type[Exception], message: str, files: Files, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        quantize_onnx(files.float32, tmp_path / "a.onnx", calibration)
    assert not list(tmp_path.iterdir())


def model(kind: str, initializer: str) -> bytes:
    """An ONNX model that only has the parts that are looked at."""
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        graph ({kind}[1, 3, 64, 64] images) => ({kind}[1, 3, 64, 64] output)
        <{kind}[1] {initializer} = {{1}}> {{output = Mul(images, {initializer})}}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no ONNX", "which is no ONNX file"),
        (model("float", "weight"), "which has no mixers"),
        (model("float16", "analysis_w"), "which takes other images"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    expected = f"quantize_onnx: expected a float32 file that export_onnx wrote, got {tmp_path}/a.onnx, {message}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", [IMAGES])
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_bad_paths(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got .*int8.onnx, which is quantised"):
        quantize_onnx(files.int8, tmp_path / "b.onnx", [IMAGES])
    with pytest.raises(FileNotFoundError, match=r"quantize_onnx: expected a file that export_onnx wrote, got .*none"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "b.onnx", [IMAGES])
    with pytest.raises(FileNotFoundError, match="quantize_onnx: expected a path in a folder that exists"):
        quantize_onnx(files.float32, tmp_path / "none" / "b.onnx", [IMAGES])
    with pytest.raises(ValueError, match=r"quantize_onnx: expected a path that ends with .onnx"):
        quantize_onnx(files.float32, tmp_path / "b.ort", [IMAGES])
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="quantize_onnx: needs onnx and onnxruntime; pip install onnx onnxruntime"):
        quantize_onnx(files.float32, tmp_path / "a.onnx", [IMAGES])


def quantize_command(folder: Path, *arguments: str) -> int:
    options = ["--model", "affnet_et", "--size", str(SIZE), "--quantize", "int8", "--calibration", str(folder)]
    return cli.main(["export", "--format", "onnx", *options, *arguments])


def test_the_command(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.setitem(command.FORMATS, "onnx", (lambda *_, **__: Exported(files.float32, (), 0.0), load_onnx))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".hidden").touch()
    for index, image in enumerate(structured_images(4)):
        pixels = (255 * image).byte().permute(1, 2, 0).numpy()
        pillow.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    assert quantize_command(tmp_path / "images", str(tmp_path / "a.onnx")) == 0
    said = capsys.readouterr().out
    assert "QuantizeLinear" in said
    assert "onnx int8" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "images"]


def test_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.onnx")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    for arguments, message in (
        ((tmp_path / "none", out), "export: expected --calibration to be a folder, got "),
        ((tmp_path / "empty", out), "empty for --calibration, got none\n"),
        ((tmp_path / "texts", out), "load_image: expected an image, got "),
        ((tmp_path / "empty", "--size", "32x64", out), "square images, got onnx and 32 x 64; quantize_onnx takes"),
        ((tmp_path / "empty", "--format", "aoti", out), "expected --quantize with --format onnx and square images"),
    ):
        assert quantize_command(*arguments) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", "--model", "affnet_et", "--format", "onnx", "--quantize", "int8", out]) == 2
    assert capsys.readouterr().err == "export: expected --quantize and --calibration together, got one of them\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "texts"]
