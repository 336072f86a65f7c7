"""Exportable models against the definition, and what the exported files compute in their runtimes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.cpp_extension import include_paths

from affnet_kernels import AFFMixer, export, replace_mixers
from affnet_kernels import __main__ as cli
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.commands import export as command
from affnet_kernels.export.mixer import ExportableMixer
from affnet_kernels.export.program import largest_error
from affnet_kernels.models import MODELS, AFFNet, create_model
from tests.helpers import (
    DATA,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    PARAMETERS,
    SHAPES,
    THRESHOLD,
    Case,
    Shape,
    branch_error,
    leaf,
    make_case,
    relative_error,
)
from tests.networks import seeded_state_dict
from tests.official_mixer import make_model

SIZE = 64
FREQUENCY_DOMAIN = {"DFT", "STFT", "MelWeightMatrix", "RDFT", "IRDFT", "IDFT", "Complex"}


def mixer_of(shape: Shape, case: Case) -> AFFMixer:
    mixer = AFFMixer(
        shape.channels, shape.blocks, shape.hidden_factor, THRESHOLD, case.activation, dtype=case.tensors[1].dtype
    )
    mixer.load_state_dict(dict(zip(PARAMETERS, case.tensors[1:], strict=True)))
    return mixer


def network(**options: Any) -> AFFNet:
    """A small AFFNet, of weights for which the mixers matter."""
    model = AFFNet((8, 8, 8, 16, 24), (1, 1, 1, 1, 1), 2, num_classes=5, **options).eval()
    model.load_state_dict(seeded_state_dict(model))
    return model


class AllActivations(nn.Module):
    """A mixer of every activation, on maps of 5 x 6; the last has more hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.mixers = nn.Sequential(*(AFFMixer(12, 3, 1 + (name == "gelu"), activation=name) for name in ACTIVATIONS))
        for parameter in self.mixers.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixers(self.stem(x))


class Recorder(TorchDispatchMode):
    """Records the names of the operators that run, and the largest number of axes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.rank = 0

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.name())
        for tensor in tree_leaves(result):
            assert not tensor.is_complex(), func
            self.rank = max(self.rank, tensor.dim())
        return result


@pytest.mark.parametrize(
    ("shape", "activation"),
    [(name, "relu") for name in SHAPES]
    + [(name, activation) for activation in ACTIVATIONS for name in ("odd width", "hidden three times, odd")],
)
def test_a_mixer_is_the_definition(shape: str, activation: str) -> None:
    case = make_case(SHAPES[shape], torch.float64, activation)
    exportable = ExportableMixer(mixer_of(SHAPES[shape], case), (SHAPES[shape].height, SHAPES[shape].width))
    x = leaf(case.tensors[0])
    y = exportable(x)
    assert branch_error(y, case) <= FORWARD_BOUND[torch.float64]
    dx, *others = torch.autograd.grad(y, [x, *exportable.parameters()], case.dy)
    assert relative_error(dx, case.gradients[0]) <= GRADIENT_BOUND[torch.float64]
    assert all(other.abs().max() > 0 for other in others)


def test_the_imaginary_parts_of_dc_and_nyquist_count_nothing() -> None:
    for width in (6, 7):
        _, synthesis = export.dft.along_width(width)
        ignored = [synthesis[:, width // 2 + 1]] + ([synthesis[:, -1]] if width == 6 else [])
        assert all(column.abs().max() == 0 for column in ignored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = make_case(SHAPES["odd height"], dtype)
    exportable = ExportableMixer(mixer_of(SHAPES["odd height"], case), (9, 8))
    y = exportable(case.tensors[0])
    assert y.dtype == dtype
    torch.testing.assert_close(y, case.y.to(dtype), rtol=2e-3 if dtype == torch.float16 else 1e-2, atol=1e-2)
    assert exportable.to(dtype)(case.tensors[0]).dtype == dtype


def test_only_plain_operators_run() -> None:
    exportable = export.to_exportable(AllActivations(), size=(5, 6))
    with Recorder() as recorder:
        exportable(torch.randn(2, 3, 5, 6))
    assert not [name for name in recorder.names if "fft" in name or "complex" in name or "affnet" in name]
    assert recorder.rank <= 4


def test_a_model_is_copied_and_computes_the_same() -> None:
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exportable = export.to_exportable(model, size=(64, 96))
    assert type(exportable) is AFFNet
    assert not exportable.training
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    kinds = [{type(m) for m in m.modules()} & {AFFMixer, ExportableMixer} for m in (model, exportable)]
    assert kinds == [{AFFMixer}, {ExportableMixer}]
    x = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(exportable(x), model.eval()(x), rtol=1e-5, atol=1e-5)
    assert exportable(x[:0]).shape == (0, 5)


def test_official_mixers_after_they_were_replaced() -> None:
    model = make_model()
    x = torch.randn(2, 3, 7, 10)
    expected = model(x)
    replace_mixers(model)
    torch.testing.assert_close(export.to_exportable(model, size=(7, 10))(x), expected, rtol=1e-5, atol=1e-5)


def test_one_mixer_under_two_names() -> None:
    mixer = AFFMixer(3, 1)
    exportable = export.to_exportable(nn.Sequential(mixer, nn.ReLU(), mixer), size=6)
    assert exportable[0] is exportable[2]
    pooled = nn.Sequential(mixer, nn.AvgPool2d(2), mixer)
    with pytest.raises(ValueError, match="expected 2 to get maps of one size, got 6 x 8 and 3 x 4"):
        export.to_exportable(pooled, size=(6, 8))


def test_a_mixer_alone() -> None:
    mixer = AFFMixer(16, 4)
    x = torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(export.to_exportable(mixer, size=(16, 5, 6))(x), mixer(x), rtol=1e-5, atol=1e-5)


def test_wrong_maps_are_refused() -> None:
    exportable = export.to_exportable(AFFMixer(16, 4), size=(16, 5, 6))
    with pytest.raises(
        ValueError,
        match=r"ExportableMixer: expected maps \[B, 16, 5, 6\], got \[1, 16, 6, 5\]; make another exportable",
    ):
        exportable(torch.randn(1, 16, 6, 5))
    with pytest.raises(TypeError, match=r"expected maps for weights of torch.float32, got torch.float64"):
        exportable(torch.randn(1, 16, 5, 6, dtype=torch.float64))


class OwnForward(AFFMixer):
    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        return super().forward(x) / 2


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = AFFMixer(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x


def with_prelu() -> nn.Module:
    model = nn.Sequential(AFFMixer(3, 1))
    model[0].act = nn.PReLU()
    return model


def with_hook(register: Callable[[nn.Module], Any]) -> nn.Module:
    model = nn.Sequential(AFFMixer(3, 1))
    register(model[0])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Conv2d(3, 3, 1),
            "expected a model with AFFMixers, got Conv2d without any; replace_mixers puts them",
        ),
        (make_model, "expected a model with AFFMixers, got Sequential without any; replace_mixers puts them"),
        (with_prelu, "expected act and act2 to be one of .*, got PReLU"),
        (
            lambda: with_hook(lambda m: m.register_forward_hook(print)),
            r"0 \(AFFMixer\): expected a mixer without hooks",
        ),
        (lambda: with_hook(lambda m: m.register_forward_pre_hook(print)), "expected a mixer without hooks"),
        (lambda: with_hook(lambda m: m.register_full_backward_hook(print)), "expected a mixer without hooks"),
        (lambda: with_hook(lambda m: m.act.register_forward_hook(print)), "hooks on its act would not run"),
        (lambda: torch.compile(nn.Sequential(AFFMixer(3, 1))), "torch.compile has captured it"),
        (lambda: nn.Sequential(OwnForward(3, 1)), r"0 \(OwnForward\): expected AFFMixer's own forward"),
        (Unused, r"expected mixers that run, got none that does on images \[3, 8, 8\]"),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 1), AFFMixer(4, 1)),
            "got Sequential, which fails on them: .* 4 channels",
        ),
    ],
)
def test_refusals(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export.to_exportable(make(), size=8)


@pytest.mark.parametrize("size", [0, (8,), (8, -8), (3, 8, 8.5), (1, 2, 3, 4)])
def test_bad_sizes(size: Any) -> None:
    with pytest.raises(
        ValueError, match="to_exportable: expected size as H and W, or C, H and W, all of them >= 1, got"
    ):
        export.to_exportable(AFFMixer(3, 1), size=size)


def test_a_wrong_output_is_found() -> None:
    model = AllActivations()
    right = export.to_exportable(model, size=(5, 6))
    for wrong in (lambda y: y + 0.5, lambda y: torch.where(y == y.max(), torch.nan, y)):
        error = largest_error(lambda images, wrong=wrong: [wrong(right(images))], model, (5, 6), (1, 2))
        assert math.isnan(error) or error == pytest.approx(0.5, abs=1e-4)
        assert not error <= 1e-4
    assert largest_error(right, model, (5, 6), (1, 2)) <= 1e-4


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = needs_onnx()
    import onnx

    model = network().train()
    path = tmp_path / "network.onnx"
    path.write_text("an earlier export")
    exported = export.export_onnx(model, path, size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    assert exported.path == path
    assert exported.error is not None
    assert exported.error <= 1e-5
    assert {"Conv", "MatMul"} & set(exported.operators)
    assert not FREQUENCY_DOMAIN & set(exported.operators)
    assert __file__.encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
    assert onnx.load(path).ir_version == 8
    assert model.training
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())] == [
        ("images", ["batch", 3, SIZE, SIZE]),
        ("output", ["batch", 5]),
    ]
    for batch in range(1, 6):
        x = torch.randn(batch, 3, SIZE, SIZE)
        (got,) = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model.eval()(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(Exception, match="Got: 32 Expected: 64"):
        session.run(None, {"images": torch.randn(1, 3, 32, 64).numpy()})


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_of_one_group_is_written_out(affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(AFFMixer(16), nn.GroupNorm(1, 16, affine=affine), nn.GroupNorm(2, 16)).double()
    if affine:
        nn.init.normal_(model[1].weight)
        nn.init.normal_(model[1].bias)
    exportable = export.to_exportable(model, size=(16, 5, 7))
    assert [isinstance(module, nn.GroupNorm) for module in exportable] == [False, False, True]
    x = 3 + torch.randn(2, 16, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(exportable(x), model(x), rtol=1e-12, atol=1e-12)


def test_onnx_norms_of_large_maps_are_accurate(tmp_path: Path) -> None:
    needs_onnx()
    torch.manual_seed(0)
    model = nn.Sequential(AFFMixer(320), nn.GroupNorm(1, 320))
    exported = export.export_onnx(model, tmp_path / "norm.onnx", size=(320, 64, 64))
    assert exported.error is not None
    assert exported.error <= 2e-5  # 9e-5 by InstanceNormalization
    assert "InstanceNormalization" not in exported.operators


def test_onnx_of_a_fixed_batch_and_a_later_opset(tmp_path: Path) -> None:
    needs_onnx()
    import onnx

    path = tmp_path / "mixers.onnx"
    exported = export.export_onnx(AllActivations(), path, size=(5, 6), opset=20, dynamic_batch=False)
    assert exported.error is not None
    assert exported.error <= 1e-4
    proto = onnx.load(path)
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [20]
    assert [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 5, 6]
    with pytest.raises(ValueError, match="export_onnx: expected opset >= 18, got 17"):
        export.export_onnx(AllActivations(), path, size=(5, 6), opset=17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_onnx_export_of_ones_own(dtype: torch.dtype, tmp_path: Path) -> None:
    onnxruntime = needs_onnx()
    import onnx

    model = AllActivations().eval().to(dtype)
    x = torch.randn(2, 3, 5, 6, dtype=dtype)
    torch.onnx.export(
        model,
        (x,),
        tmp_path / "own.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        custom_translation_table=export.ONNX_TRANSLATIONS,
        verbose=False,
    )
    nodes = onnx.load(tmp_path / "own.onnx").graph.node
    assert not FREQUENCY_DOMAIN & {node.op_type for node in nodes}
    assert sum(node.op_type == "Conv" for node in nodes) == 1 + 6 * len(ACTIVATIONS)
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 3, 5, 6, dtype=dtype)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        bound = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=bound, atol=bound)


def test_onnx_export_of_ones_own_needs_fixed_maps(tmp_path: Path) -> None:
    needs_onnx()
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(
            AFFMixer(3, 1),
            (torch.randn(2, 3, 8, 8),),
            tmp_path / "own.onnx",
            dynamo=True,
            dynamic_shapes=({2: torch.export.Dim("height")},),
            custom_translation_table=export.ONNX_TRANSLATIONS,
            verbose=False,
        )
    causes, error = [], caught.value.__cause__
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert any("expected maps of fixed C, H and W and a fixed threshold" in cause for cause in causes)


# Formats, the endings of their files, and the packages that they need.
FORMATS = {
    "onnx": ("onnx", "onnx"),
    "executorch": ("pte", "executorch"),
    "coreml": ("mlpackage", "coremltools"),
    "openvino": ("xml", "openvino"),
    "aoti": ("pt2", "torch"),
}


needs_minutes = pytest.mark.skipif(
    "AFFNET_TEST_AOTI" not in os.environ, reason="compiles C++ for a minute; make test-export runs it"
)


@pytest.mark.parametrize("name", ["executorch", "coreml", "openvino", pytest.param("aoti", marks=needs_minutes)])
def test_other_formats(name: str, tmp_path: Path) -> None:
    suffix, package = FORMATS[name]
    pytest.importorskip(package)
    for _ in range(2 if name == "coreml" else 1):  # a folder takes the place of a folder
        exported = getattr(export, f"export_{name}")(AllActivations(), tmp_path / f"mixers.{suffix}", size=(5, 6))
    expected = ["mixers.bin", "mixers.xml"] if name == "openvino" else [f"mixers.{suffix}"]
    assert sorted(file.name for file in tmp_path.iterdir()) == expected
    assert not [operator for operator in exported.operators if "fft" in operator or "dft" in operator.lower()]
    if exported.error is None:
        assert name == "coreml"
    else:
        assert exported.error <= 1e-4
    if name == "executorch":
        assert set(exported.operators) <= {"alloc", "getitem", "executorch_call_delegate", "gelu.out", "tanh.out"}


@needs_minutes
def test_aoti_without_python(tmp_path: Path) -> None:
    model = AllActivations()
    export.export_aoti(model, tmp_path / "mixers.pt2", size=(5, 6))
    libraries = Path(torch.__file__).parent / "lib"
    program = tmp_path / "program"
    command = ["c++", "-std=c++20", *(f"-I{path}" for path in include_paths()), str(DATA.parent / "aoti_program.cpp")]
    links = [f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}", "-o", str(program)]
    subprocess.run([*command, *links], check=True)
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    assert "libpython" not in linked
    shape = (3, 3, 5, 6)
    arguments = [program, tmp_path / "mixers.pt2", *map(str, shape)]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    expected = model(torch.sin(torch.arange(270.0)).view(shape)).flatten()
    torch.testing.assert_close(torch.tensor([float(text) for text in printed]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_paths_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    suffix, package = FORMATS[name]
    pytest.importorskip(package)
    call = getattr(export, f"export_{name}")
    with pytest.raises(ValueError, match=rf"export_{name}: expected a path that ends with \.{suffix}, got a\.txt"):
        call(AFFMixer(3, 1), "a.txt", size=8)
    with pytest.raises(FileNotFoundError, match=f"export_{name}: expected a path in a folder that exists, got "):
        call(AFFMixer(3, 1), tmp_path / "none" / f"a.{suffix}", size=8)
    (tmp_path / f"b.{suffix}").mkdir()
    if name != "coreml":
        with pytest.raises(IsADirectoryError, match=r"expected a path to write a file to, got .*, a folder"):
            call(AFFMixer(3, 1), tmp_path / f"b.{suffix}", size=8)


@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_export_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix, package = FORMATS[name]
    pytest.importorskip(package)
    path = tmp_path / f"mixer.{suffix}"
    path.write_text("an earlier export")

    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        getattr(export, f"export_{name}")(AFFMixer(3, 1), path, size=8)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an earlier export"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "aoti"])
def test_missing_packages_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix, package = FORMATS[name]
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"export_{name}: needs {package}.*; pip install {package}"):
        getattr(export, f"export_{name}")(AFFMixer(3, 1), tmp_path / f"a.{suffix}", size=8)


def stand_in(error: float | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A format whose files hold nothing, and compute what the network does."""
    networks = []

    def write(model: nn.Module, path: str, *, size: tuple[int, ...]) -> export.Exported:
        assert size == (3, 32, 64)
        networks.append(model)
        Path(path).write_bytes(bytes(1_500_000))
        return export.Exported(Path(path), ("Add", "Conv"), error)

    return write, lambda path, one_thread: networks[0]


def export_command(*arguments: str) -> int:
    return cli.main(["export", "--model", "affnet_et", "--format", "onnx", "--size", "32x64", *arguments])


def test_the_command_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "et.onnx")
    for error, status in ((2e-6, 0), (1e-2, 1), (math.nan, 1), (None, 0)):
        monkeypatch.setitem(command.FORMATS, "onnx", stand_in(error))
        assert export_command(out) == status
        said = capsys.readouterr().out
        assert said.startswith(f"weights: random, for measuring only\n{out}: 1.5 MB, images of 32 x 64\n")
        assert "operators: Add, Conv\n" in said
        if error is None:
            assert said.endswith("error: not known, as onnx cannot run here\n")
        else:
            assert f"error: {error:.1e} at most, of outputs up to " in said
            assert re.search(r"official network, eager +[\d.]+ ms\n  fused mixers, eager +[\d.]+ ms\n", said)
            assert re.search(r"onnx +[\d.]+ ms, [\d.]+x the official network's speed\n$", said)
    assert torch.get_num_threads() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0"], "export: expected size as S or HxW, such as 256 or 256x320, got 0"),
        (["--size", "3x4x5"], "export: expected size as S or HxW, such as 256 or 256x320, got 3x4x5"),
        (["--checkpoint", "none.pt"], "none.pt"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_command(str(tmp_path / "et.onnx"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_needs_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--format", "onnx", str(tmp_path / "a.onnx")]) == 2
    assert capsys.readouterr().err == "export: expected a network, got none; give --checkpoint or --model\n"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "--format", "tflite", str(tmp_path / "a.tflite")])
    assert "invalid choice: 'tflite'" in capsys.readouterr().err


def test_the_command_exports_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("affnet_et", activation="relu", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "et.pt")
    write, load = stand_in(0.0)
    monkeypatch.setitem(command.FORMATS, "onnx", (write, load))
    weights = ["--checkpoint", str(tmp_path / "et.pt"), "--activation", "relu"]
    assert export_command(str(tmp_path / "et.onnx"), *weights) == 0
    x = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(load("", one_thread=True)(x), model.eval()(x))
    assert export_command(str(tmp_path / "et.onnx"), *weights, "--model", "affnet_t") == 2
    assert "export: expected a checkpoint of affnet_t, got " in capsys.readouterr().err


def test_the_command_writes_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_onnx()
    monkeypatch.setitem(MODELS, "affnet_et", network)
    assert export_command(str(tmp_path / "et.onnx")) == 0
    assert re.search(r"error: [0-9.e-]+ at most", capsys.readouterr().out)
    assert export_command(str(tmp_path / "none" / "et.onnx")) == 2
    assert "expected a path in a folder that exists" in capsys.readouterr().err


def needs_onnx() -> Any:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    return pytest.importorskip("onnxruntime")
