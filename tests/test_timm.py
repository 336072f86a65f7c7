"""The networks in timm's registry, by timm's conventions; needs a timm that can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affnet_kernels.models import MODELS, AFFNet
from tests.networks import images, official_logits, seeded_state_dict

try:
    import timm
except Exception as error:  # ImportError, or what a torchvision built for another PyTorch raises
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)

ROOT = Path(__file__).parents[1]
SMALLEST = "affnet_et"
RELOAD = "import importlib; importlib.reload(affnet_kernels.models)"


def image(height: int = 64, width: int = 96, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def create(name: str = SMALLEST, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def test_the_registry_lists_the_networks() -> None:
    assert set(timm.list_models("affnet*")) == set(MODELS)
    assert timm.list_models("affnet*", pretrained=True) == []


@pytest.mark.parametrize(
    "code",
    [
        f"import affnet_kernels.models; assert 'timm' not in sys.modules; {RELOAD}; import timm",
        f"import timm, affnet_kernels.models; {RELOAD}",
        "import affnet_kernels.models; from timm.models import create_model; import timm",
    ],
)
def test_any_order_of_imports(code: str) -> None:
    code = f"import sys; {code}\nassert len(timm.list_models('affnet*')) == 5"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_the_one_of_this_package(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = MODELS[name](), create(name)
    assert isinstance(theirs, AFFNet)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for key in (theirs.pretrained_cfg["first_conv"], theirs.pretrained_cfg["classifier"]):
        assert f"{key}.weight" in shapes[0]
    assert theirs.pretrained_cfg["architecture"] == name


def test_the_logits_are_the_official_ones() -> None:
    model = create(activation="silu")
    model.load_state_dict(seeded_state_dict(model))
    with torch.no_grad():
        assert (model(images()) - official_logits(SMALLEST, "silu")).abs().max() <= 2e-6


def test_the_transform_is_the_recipe_of_the_official_network() -> None:
    """RGB in [0, 1], the shorter side resized to 288, the middle 256."""
    config = timm.data.resolve_model_data_config(create())
    assert config["input_size"] == (3, 256, 256)
    resize, crop, tensor, normalise = timm.data.create_transform(**config).transforms
    assert (resize.size, resize.interpolation.value, crop.size) == (288, "bilinear", (256, 256))
    from PIL import Image

    white = normalise(tensor(Image.new("RGB", (2, 2), "white")))
    assert white.eq(1).all()


def test_there_are_no_weights_to_download() -> None:
    with pytest.raises(RuntimeError, match=r"No pretrained weights exist for affnet_t\. Use `pretrained=False`"):
        timm.create_model("affnet_t", pretrained=True)


def test_options() -> None:
    model = create(num_classes=7, in_chans=4, drop_rate=0.2, drop_path_rate=0.1, activation="relu", output_stride=16)
    assert (model.num_classes, model.in_chans) == (7, 4)
    assert model(image(channels=4)).shape == (2, 7)
    assert model.forward_features(image(channels=4)).shape[2:] == (4, 6)
    assert model.classifier.dropout.p == 0.2
    assert model.layer_5[1].global_rep[2].drop_path.rate == pytest.approx(0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        timm.create_model(SMALLEST, depth=3)


def test_no_classifier() -> None:
    model, pooled, unpooled = create(), create(num_classes=0), create(num_classes=0, global_pool="")
    features = model.forward_features(image())
    for headless in (pooled, unpooled):
        headless.load_state_dict(model.state_dict(), strict=False)
        assert isinstance(headless.get_classifier(), nn.Identity)
    assert torch.equal(pooled(image()), model.forward_head(features, pre_logits=True))
    assert torch.equal(unpooled(image()), features)
    with pytest.raises(ValueError, match="AFFNet: expected num_classes >= 1, got 0"):
        MODELS[SMALLEST](num_classes=0)


def test_device_and_dtype() -> None:
    model = create(num_classes=0, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert model(image().to("meta", torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx", "getter"])
def test_features(kind: str, stride: int) -> None:
    options = {"features_only": True, "feature_cls": kind, "output_stride": stride}
    x = image()
    model = create(output_stride=stride)
    expected = model.forward_intermediates(x, intermediates_only=True)
    for indices, taken in ((None, [0, 1, 2, 3, 4]), ((1, 4), [1, 4]), ((-2,), [3])):
        features = create(**options, out_indices=indices)
        assert features.feature_info.reduction() == [min(2 ** (index + 1), stride) for index in taken]
        maps = features(x)
        maps = list(maps.values()) if kind == "dict" else maps
        assert features.feature_info.channels() == [m.shape[1] for m in maps]
        torch.testing.assert_close(maps, [expected[index] for index in taken])


def test_torchvision_extracts_features() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction", exc_type=ImportError)
    model = create()
    names = {"layer_3.1.global_rep.0.filter": "mixed", "classifier": "logits"}
    with torch.no_grad():
        got = extraction.create_feature_extractor(model, names)(image())
        x = model.layer_3[0](model.layer_2(model.layer_1(model.conv_1(image()))))
        block = model.layer_3[1].global_rep[0]
        torch.testing.assert_close(got["mixed"], block.filter(block.norm2(block.mlp(block.norm1(x)))))
        torch.testing.assert_close(got["logits"], model(image()))


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_are_grouped_from_the_stem_to_the_classifier(coarse: bool) -> None:
    """For learning rates by depth: the order is the one of execution, and a tail goes with what it follows."""
    from timm.models import group_modules, group_parameters

    model = create()
    matcher = model.group_matcher(coarse)
    groups = group_parameters(model, matcher, reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    executed = [
        *("conv_1.", "layer_1.0.", "layer_2.0.", "layer_2.1.", "layer_2.2."),
        *(f"layer_3.{rest}." for rest in ("0", "1.global_rep.0", "1.global_rep.1", "1.global_rep.2", "1.conv_proj")),
        *("layer_3.1.fusion.", "layer_4.0.", "layer_4.1.global_rep.0.", "layer_5.0.", "layer_5.1.fusion."),
        *("conv_1x1_exp.", "classifier."),
    ]
    depths = [{depth for name, depth in groups.items() if name.startswith(prefix)} for prefix in executed]
    assert all(len(depth) == 1 for depth in depths)
    order = [depth.pop() for depth in depths]
    assert order == sorted(order)
    of = dict(zip(executed, order, strict=True))
    assert of["conv_1x1_exp."] == of["layer_5.1.fusion."] < of["classifier."]
    assert of["layer_3.1.global_rep.2."] == of["layer_3.1.conv_proj."] == of["layer_3.1.fusion."] < of["layer_4.0."]
    assert len(set(groups.values())) == (7 if coarse else 2 + 1 + 3 + (1 + 3) + (1 + 5) + (1 + 4))
    modules = group_modules(model, matcher, reverse=True)
    assert all(modules[name.rpartition(".")[0]] == depth for name, depth in groups.items())


def test_learning_rates_by_depth() -> None:
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(create(), layer_decay=0.5)
    scales = [group["lr_scale"] for group in groups]
    assert sum(len(group["params"]) for group in groups) == len(list(create().parameters()))
    assert max(scales) == 1
    assert scales == sorted(scales)


def official_file(path: Path, kind: str, in_chans: int = 3) -> tuple[Path, nn.Module]:
    """A checkpoint of a network, as training code writes it, and that network."""
    source = create(in_chans=in_chans)
    state = source.state_dict()
    if kind == "official":
        epoch = {"iterations": 10, "epoch": 1, "best_metric": 0.7, "optim_state_dict": {"state": {}}}
        torch.save({**epoch, "model_state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    elif kind == "flat":
        torch.save(state, path)
    else:
        zeros = {key: torch.zeros_like(value) for key, value in state.items()}
        torch.save({"model_state_dict": zeros, "model_ema_state_dict": state}, path)
    return path, source


@pytest.mark.parametrize("kind", ["official", "flat", "averaged"])
@pytest.mark.parametrize("way", ["checkpoint_path", "file"])
def test_official_checkpoints_load(tmp_path: Path, way: str, kind: str) -> None:
    path, source = official_file(tmp_path / "checkpoint.pt", kind)
    torch.manual_seed(1)
    options = (
        {"checkpoint_path": str(path)}
        if way == "checkpoint_path"
        else {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    )
    model = timm.create_model(SMALLEST, **options).eval()
    assert torch.equal(model(image()), source(image()))


def test_pretrained_weights_for_other_classes_and_channels(tmp_path: Path) -> None:
    path, source = official_file(tmp_path / "checkpoint.pt", "official")
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    gray = timm.create_model(SMALLEST, in_chans=1, num_classes=3, **overlay)
    weight = source.conv_1.block.conv.weight
    torch.testing.assert_close(gray.conv_1.block.conv.weight, weight.sum(1, keepdim=True))
    assert torch.equal(gray.conv_1x1_exp.block.conv.weight, source.conv_1x1_exp.block.conv.weight)
    assert gray.classifier.fc.weight.shape == (3, gray.num_features)
    features = timm.create_model(SMALLEST, features_only=True, **overlay).eval()
    torch.testing.assert_close(features(image()), source.forward_intermediates(image(), intermediates_only=True))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path, _ = official_file(tmp_path / "checkpoint.pt", "official")
    with pytest.raises(RuntimeError, match="size mismatch for layer_3"):
        timm.create_model("affnet_t", checkpoint_path=str(path))


def test_a_state_dict_loads_as_in_any_module() -> None:
    """The network may also be a part of another one."""
    model, other = nn.Sequential(create()), nn.Sequential(create())
    nn.init.ones_(other[0].classifier.fc.weight)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(image()), other(image()))
    with pytest.raises(RuntimeError, match=r'Missing key.*: "conv_1\.block\.conv\.weight"'):
        model[0].load_state_dict({})
