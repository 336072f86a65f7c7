"""The networks against the official ones: parameters, state-dict keys, logits; and their options."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from affnet_kernels import AFFMixer
from affnet_kernels.models import MODELS, AFFNet, create_model
from affnet_kernels.models.layers import NORMS, make_divisible
from affnet_kernels.models.token_mixers import MIXERS
from tests.networks import PUBLISHED, images, official_logits, official_state_dict, seeded_state_dict

PARAMETERS = {
    "affnet_et": 1_436_264,
    "affnet_t": 2_654_232,
    "affnet": 5_568_696,
    "affnet_base": 17_178_104,
    "affnet_large": 46_068_088,
}
BACKBONE_PARAMETERS = {"affnet_et": 775_168, "affnet_t": 1_736_240, "affnet": 4_298_576}


def tiny(**options: Any) -> AFFNet:
    return AFFNet((8, 8, 8, 16, 24), (1, 2, 1, 2, 1), 2, **({"num_classes": 5} | options))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_network_has_its_parameters() -> None:
    assert {name: count(build()) for name, build in MODELS.items()} == PARAMETERS


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_backbones_have_their_parameters(name: str) -> None:
    model = create_model(name)
    assert count(model) - count(model.conv_1x1_exp) - count(model.classifier) == BACKBONE_PARAMETERS[name]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_state_dict_is_the_official_one(name: str, norm: str) -> None:
    state = create_model(name, norm=norm).state_dict()
    stored = official_state_dict(name, "batch_norm_2d" if norm == "batch_norm_2d" else "layer_norm_2d")
    assert [(key, list(value.shape)) for key, value in state.items()] == list(stored.items())


@pytest.mark.parametrize("mixer", ["fused", "reference"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_logits_are_the_official_ones(name: str, activation: str, mixer: str) -> None:
    model = create_model(name, activation=activation, mixer=mixer).eval()
    model.load_state_dict(seeded_state_dict(model))
    with torch.no_grad():
        logits = model(images())
    expected = official_logits(name, activation)
    assert (logits - expected).abs().max() <= 2e-6
    assert (logits - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_output_stride(stride: int) -> None:
    model = tiny(output_stride=stride).eval()
    maps = model.forward_features(torch.randn(1, 3, 64, 96))
    assert maps.shape == (1, model.num_features, 64 // stride, 96 // stride)
    # layer_4.0 and layer_5.0: a stage's own first convolution has the dilation in force before the stage.
    dilations = {
        name: stage[0].block.conv_3x3.block.conv.dilation[0]
        for name, stage in (("layer_4", model.layer_4), ("layer_5", model.layer_5))
    }
    assert dilations == {"layer_4": 1, "layer_5": 2 if stride == 8 else 1}
    assert all(
        module.dilation == (1, 1)
        for stage in (model.layer_3, model.layer_4, model.layer_5)
        for module in stage[1].modules()
        if isinstance(module, nn.Conv2d)
    )
    assert [info["reduction"] for info in model.feature_info] == [min(r, stride) for r in (2, 4, 8, 16, 32)]


def test_dilation_keeps_the_receptive_field() -> None:
    """Where stride 1 with dilation replaces stride 2, the larger map contains the smaller one's values."""
    torch.manual_seed(0)
    wide, narrow = tiny(output_stride=16, mixer="large-kernel").eval(), tiny(mixer="large-kernel").eval()
    x = torch.randn(1, 3, 64, 64)
    state = {key: value for key, value in narrow.state_dict().items() if "filter" not in key}
    wide.load_state_dict(state, strict=False)
    with torch.no_grad():
        got = wide.layer_5[0](x_features := _until_layer_5(wide, x))
        expected = narrow.layer_5[0](x_features)
    torch.testing.assert_close(got[..., ::2, ::2], expected)


def _until_layer_5(model: AFFNet, x: torch.Tensor) -> torch.Tensor:
    for layer in (model.conv_1, model.layer_1, model.layer_2, model.layer_3, model.layer_4):
        x = layer(x)
    return x


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_trains(mixer: str) -> None:
    torch.manual_seed(0)
    model = tiny(mixer=mixer, img_size=(64, 32), drop_rate=0.1, drop_path_rate=0.2)
    model(torch.randn(3, 3, 64, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_token_mlp_names_the_size_it_was_built_for() -> None:
    with pytest.raises(ValueError, match="expected maps of 8 x 8, got 4 x 8; build the network with img_size"):
        tiny(mixer="mlp", img_size=64)(torch.randn(1, 3, 32, 64))


def test_fused_and_reference_share_weights_and_answers() -> None:
    torch.manual_seed(0)
    fused, reference = tiny().eval().double(), tiny(mixer="reference").eval().double()
    reference.load_state_dict(fused.state_dict())
    assert {m.backend for m in reference.modules() if isinstance(m, AFFMixer)} == {"reference"}
    x = torch.randn(2, 3, 56, 72, dtype=torch.float64)
    torch.testing.assert_close(fused(x), reference(x), rtol=1e-12, atol=1e-12)


def test_the_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = create_model("affnet_et")
    assert model.classifier.fc.bias.abs().max() == 0
    bound = (6 / (model.num_features + 1000)) ** 0.5  # xavier_uniform
    assert 0.99 * bound < model.classifier.fc.weight.abs().max() <= bound
    weight = model.conv_1x1_exp.block.conv.weight
    assert weight.std().item() * (3 * weight[0].numel()) ** 0.5 == pytest.approx(1, abs=0.02)
    assert model.layer_5[1].global_rep[0].filter.w1.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm: str) -> None:
    torch.manual_seed(0)
    model = tiny(norm=norm)
    block = model.layer_3[1].global_rep[0].norm1
    x = torch.randn(2, 8, 5, 7) * 3 + 1
    axes = {"layer_norm_2d": (1, 2, 3), "batch_norm_2d": (0, 2, 3), "layer_norm": (1,)}[norm]
    deviation, mean = torch.std_mean(x, dim=axes, keepdim=True, correction=0)
    torch.testing.assert_close(block(x), (x - mean) / deviation, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh"])
def test_the_activation_is_everywhere(activation: str) -> None:
    model = tiny(activation=activation)
    kinds = {type(m).__name__ for m in model.modules() if type(m).__module__ == "torch.nn.modules.activation"}
    assert kinds == {{"relu": "ReLU", "silu": "SiLU", "gelu": "GELU", "tanh": "Tanh"}[activation]}
    assert {m.activation for m in model.modules() if isinstance(m, AFFMixer)} == {activation}


def test_drop_path_drops_whole_branches_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    model = tiny(drop_path_rate=0.5)
    last = model.layer_5[1].global_rep[0].drop_path
    assert last.rate == 0.5
    assert isinstance(model.layer_3[1].global_rep[0].drop_path, nn.Identity)
    kept = last(torch.ones(4000, 2, 3, 3))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept == kept[:, :1, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.1)
    assert last.eval()(torch.ones(2, 2)).tolist() == [[1, 1], [1, 1]]


def test_reset_classifier() -> None:
    model = tiny(drop_rate=0.3).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert [name for name, _ in model.classifier.named_children()] == ["dropout", "fc"]
    assert model.get_classifier() is model.classifier.fc
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert model(x).shape == (2, model.num_features)


@pytest.mark.parametrize("train", [True, False])
def test_the_classifier_alone_is_new_after_a_reset(train: bool) -> None:
    """Its mode is the network's, the pool comes back with classes, and a refused reset changes nothing."""
    model = tiny().train(train)
    x = torch.randn(2, 3, 64, 64)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 2, 2)
    model.reset_classifier(0)
    assert model(x).dim() == 4, "the pool stays as it was"
    with pytest.raises(ValueError, match="expected global_pool to be None or \"avg\", got ''"):
        model.reset_classifier(3, "")
    assert model.num_classes == 0
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert {module.training for module in model.modules()} == {train}


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_checkpointing_changes_no_gradient(compiled: bool) -> None:
    torch.manual_seed(0)
    model = AFFNet((8, 8, 8, 8, 8), (1, 1, 1, 1, 1), 1, num_classes=2).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for enabled in (False, True):
        model.load_state_dict(state)
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if enabled and compiled else model
        run(x).square().sum().backward()
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        results.append(({name: p.grad.clone() for name, p in model.named_parameters()}, buffers))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("train", [True, False])
def test_the_traced_network_gives_the_same(train: bool, checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = tiny(drop_rate=0.2, drop_path_rate=0.3).train(train)
    model.set_grad_checkpointing(checkpointing)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 64, 32)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(traced(x), expected)


def test_intermediate_maps() -> None:
    torch.manual_seed(0)
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 96)
    features, maps = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    assert [(m.shape[1], 64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [
        (info["num_chs"], info["reduction"], info["reduction"]) for info in model.feature_info
    ]
    for indices, taken in (([1, -1], [1, 4]), (2, [3, 4]), ((0,), [0])):
        chosen = model.forward_intermediates(x, indices, intermediates_only=True)
        torch.testing.assert_close(chosen, [maps[index] for index in taken])
    last, (chosen,) = model.forward_intermediates(x, [2], stop_early=True)
    assert last is chosen
    assert torch.equal(model.forward_intermediates(x, [4], stop_early=True)[0], features)


@pytest.mark.parametrize("last", range(5))
def test_pruning_leaves_what_the_intermediate_maps_need(last: int) -> None:
    torch.manual_seed(0)
    model = tiny(drop_rate=0.5).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model.forward_intermediates(x, [last], intermediates_only=True)
    assert model.prune_intermediate_layers([last - 5]) == [last]
    torch.testing.assert_close(model.forward_intermediates(x, [last], intermediates_only=True), expected)
    torch.testing.assert_close([model(x)], expected)
    model.train().forward_intermediates(x, [last], intermediates_only=True)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.head_hidden_size == model.num_features == model.feature_info[last]["num_chs"]


def test_pruning_can_keep_the_head() -> None:
    model = tiny().eval()
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    assert model.prune_intermediate_layers([1, 4], prune_head=False) == [1, 4]
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("indices", [[5], [-6], [], 0, 6, -1])
def test_there_are_five_stages(indices: Any) -> None:
    expected = rf"expected up to 5 stages, or their indices below 5, got {re.escape(str(indices))}"
    with pytest.raises(ValueError, match=f"forward_intermediates: {expected}"):
        tiny().forward_intermediates(torch.randn(1, 3, 32, 32), indices)
    with pytest.raises(ValueError, match=f"prune_intermediate_layers: {expected}"):
        tiny().prune_intermediate_layers(indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "AFFNet: expected num_classes >= 1, got 0"),
        ({"in_chans": 0}, "AFFNet: expected in_chans >= 1, got 0"),
        ({"output_stride": 7}, "AFFNet: expected output_stride to be 32, 16 or 8, got 7"),
        ({"norm": "rms"}, r"AFFNet: expected norm to be one of \['layer_norm_2d', 'batch_norm_2d', 'layer_norm'\]"),
        ({"activation": "prelu"}, r"AFFNet: expected activation to be one of \['relu', .*\], got 'prelu'"),
        ({"mixer": "fft"}, r"AFFNet: expected mixer to be one of \['fused', .*\], got 'fft'"),
        ({"drop_rate": 1.0}, "AFFNet: expected 0 <= drop_rate < 1, got 1.0"),
        ({"drop_path_rate": -0.1}, "AFFNet: expected 0 <= drop_path_rate < 1, got -0.1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("affnet_et", **options)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"create_model: expected one of \['affnet_et', .*\], got 'affnet_xl'"):
        create_model("affnet_xl")
    with pytest.raises(ValueError, match=r'expected global_pool to be None or "avg", got \'rms\''):
        tiny().reset_classifier(2, "rms")
    with pytest.raises(ValueError, match=r'expected global_pool to be None, "avg" or "", got \'max\''):
        tiny().reset_classifier(0, "max")
    with pytest.raises(ValueError, match="expected output_fmt to be \"NCHW\", got 'NHWC'"):
        tiny().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NHWC")


def test_make_divisible() -> None:
    assert [make_divisible(n, 8) for n in (1, 8, 11, 12, 18, 26, 416)] == [8, 8, 16, 16, 24, 24, 416]
