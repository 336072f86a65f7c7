"""`fuse_for_inference`: the same answers, from fewer and faster layers."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from affnet_kernels import AFFMixer
from affnet_kernels.backends.native import CPU
from affnet_kernels.models import AFFNet, create_model, fuse_for_inference
from affnet_kernels.models.inference import HAS_ONEDNN, ONEDNN_NAMES, FusedConv2d
from tests.networks import PUBLISHED, calibrated, images, official_logits, seeded_state_dict


def tiny(activation: str = "silu", norm: str = "layer_norm_2d", output_stride: int = 32) -> AFFNet:
    torch.manual_seed(0)
    model = AFFNet(
        (8, 8, 8, 16, 24),
        (1, 2, 1, 2, 1),
        2,
        num_classes=5,
        activation=activation,
        norm=norm,
        output_stride=output_stride,
    )
    return calibrated(model, torch.randn(4, 3, 64, 64))


def assert_same(fused: nn.Module, model: nn.Module, x: Tensor, bound: float = 1e-5) -> None:
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fused(x), expected, rtol=0, atol=bound * expected.abs().max().item())


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_keep_their_logits(name: str) -> None:
    model = create_model(name, activation="silu")
    model.load_state_dict(seeded_state_dict(model))
    fused = fuse_for_inference(model)
    with torch.no_grad():
        logits = fused(images())
    assert (logits - official_logits(name, "silu")).abs().max() <= 2e-6
    assert nn.BatchNorm2d not in kinds(fused)
    assert nn.SiLU in kinds(fused)  # the mixers' own
    assert nn.Conv2d not in kinds(fused)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh", "identity"])
@pytest.mark.parametrize("norm", ["layer_norm_2d", "batch_norm_2d", "layer_norm"])
def test_every_activation_and_norm(activation: str, norm: str) -> None:
    model = tiny(activation, norm)
    fused = fuse_for_inference(model)
    # A norm that follows no convolution stays.
    assert (nn.BatchNorm2d in kinds(fused)) == (norm == "batch_norm_2d")
    for shape in ((2, 3, 64, 64), (1, 3, 47, 33), (3, 3, 96, 32)):
        x = torch.randn(shape)
        assert_same(fused, model, x)
        assert_same(fused, model, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated_convolutions(output_stride: int) -> None:
    model = tiny(output_stride=output_stride)
    fused = fuse_for_inference(model)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.forward_features(x)
        torch.testing.assert_close(fused.forward_features(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def operators(model: nn.Module, x: Tensor) -> Counter[str]:
    """What PyTorch calls, and how often."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x)
    return Counter(event.name for event in profile.events())


@pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_every_convolution_is_one_call_of_onednn_and_no_mixer_copies() -> None:
    fused, x = fuse_for_inference(tiny()), torch.randn(2, 3, 64, 64)
    fused(x)  # packs the weights
    called = operators(fused, x)
    assert called["mkldnn::_convolution_pointwise"] == sum(isinstance(m, FusedConv2d) for m in fused.modules())
    assert (
        not {"aten::conv2d", "aten::silu_", "aten::batch_norm", "mkldnn::_reorder_convolution_weight"} & called.keys()
    )
    if not CPU.unsupported(None):
        assert called["affnet_kernels::native_forward"] == sum(isinstance(m, AFFMixer) for m in fused.modules())
        assert called["aten::clone"] == 1  # of the image, to the channels-last format


def test_an_empty_batch() -> None:
    assert fuse_for_inference(tiny())(torch.randn(0, 3, 64, 64)).shape == (0, 5)


def test_float64_does_not_need_onednn() -> None:
    model = tiny().double()
    assert_same(fuse_for_inference(model), model, torch.randn(2, 3, 64, 64, dtype=torch.float64), 1e-12)


def test_bfloat16_is_as_good_as_unfused() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        expected, unfused = model(x), half(x.bfloat16())
        fused = fuse_for_inference(half)(x.bfloat16())
    assert fused.dtype == torch.bfloat16
    assert (fused - expected).norm() <= 1.5 * (unfused - expected).norm()


def test_autocast_reaches_the_convolutions() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert fused.conv_1(x).dtype == model.conv_1(x).dtype == torch.bfloat16
            half, unfused = fused(x), model(x)
    assert (half - expected).norm() <= 1.5 * (unfused - expected).norm()


def test_the_original_is_untouched() -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    structure = repr(model)
    fused = fuse_for_inference(model)
    assert model.training
    assert repr(model) == structure
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize(
    "move",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: model.double().float()],
    ids=["deepcopy", "pickle", "cast"],
)
def test_a_used_copy_can_be_moved(move: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny()
    fused = fuse_for_inference(model)
    x = torch.randn(2, 3, 64, 64)
    assert_same(fused, model, x)
    assert_same(move(fused), model, x)


def test_new_weights_are_used() -> None:
    first, second = tiny(), tiny()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    fused, x = fuse_for_inference(first), torch.randn(2, 3, 64, 64)
    assert_same(fused, first, x)
    fused.load_state_dict(fuse_for_inference(second).state_dict())
    assert_same(fused, second, x)


def test_a_gradient_of_the_input_goes_around_onednn() -> None:
    model = tiny()
    fused, x = fuse_for_inference(model), torch.randn(1, 3, 64, 64, requires_grad=True)
    (got,) = torch.autograd.grad(fused(x).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_it_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    model = tiny()
    fused = fuse_for_inference(model)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 64, 64)
    assert_same(compiled, model, x)
    with pytest.raises(ValueError, match="expected a model that is not compiled, got one; compile the fused copy"):
        fuse_for_inference(compiled)


def test_any_sequential_is_folded() -> None:
    """As in torchvision, where a Sequential holds several convolutions, and one may lack a norm or an activation."""
    torch.manual_seed(0)
    activations = [kind() for kind in ONEDNN_NAMES]
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)]
    for act in (*activations, nn.GELU("tanh"), nn.LeakyReLU()):
        layers += [nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(8), act]
        layers += [nn.Conv2d(8, 8, 3, 1, 2, 2, groups=4), nn.BatchNorm2d(8, affine=False), act]
    layers += [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()]
    model = calibrated(nn.Sequential(*layers), torch.randn(4, 3, 16, 16))
    fused = fuse_for_inference(model)
    assert_same(fused, model, torch.randn(2, 3, 16, 16))
    assert sum(isinstance(module, FusedConv2d) for module in fused) == len([*activations, "", ""]) * 2 + 1
    assert len(fused) == len(model)
    assert isinstance(fused[-2], nn.BatchNorm2d)
    assert isinstance(fused[2], nn.Conv2d)


def test_shared_layers_are_left_alone() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    model = nn.ModuleDict({"a": nn.Sequential(conv, norm), "b": nn.Sequential(conv, nn.BatchNorm2d(4))})
    assert FusedConv2d not in kinds(fuse_for_inference(model))


def test_a_sequential_with_a_forward_of_its_own_is_left_alone() -> None:
    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in reversed(self):
                x = module(x)
            return x

    assert FusedConv2d not in kinds(fuse_for_inference(Reversed(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))


def test_hooks_and_parametrizations_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    calls: list[str] = []
    for place, name in enumerate(("conv", "norm", "act")):
        hooked = copy.deepcopy(model)
        hooked[place].register_forward_hook(lambda module, inputs, output, name=name: calls.append(name))
        fused = fuse_for_inference(hooked)
        assert (FusedConv2d in kinds(fused)) == (name == "act")
        assert_same(fused, model, torch.randn(2, 4, 3, 3))
    assert calls == ["conv", "norm", "act"]
    parametrizations.weight_norm(model[0])
    assert FusedConv2d not in kinds(fuse_for_inference(model))
