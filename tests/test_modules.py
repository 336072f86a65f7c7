"""AFFMixer: parameters, the official interface, and tracing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affnet_kernels import AFFMixer, fused_aff_mixer
from tests.helpers import PARAMETERS
from tests.official_mixer import AFNO2D_channelfirst


def test_parameters_and_initialisation() -> None:
    torch.manual_seed(0)
    mixer = AFFMixer(320, num_blocks=8, hidden_size_factor=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}
    assert shapes == {"w1": (2, 8, 40, 80), "b1": (2, 8, 80), "w2": (2, 8, 80, 40), "b2": (2, 8, 40)}
    assert mixer.w1.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(mixer.w1.mean().item()) < 1e-3
    assert "channels=320, num_blocks=8, hidden_size_factor=2" in repr(mixer)


def test_state_dict_is_the_official_one_both_ways() -> None:
    official, ours = AFNO2D_channelfirst(16, 4), AFFMixer(16, 4, sparsity_threshold=0.03)
    ours.load_state_dict(official.state_dict(), strict=True)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(ours(x), official(x))
    other = AFNO2D_channelfirst(16, 4)
    other.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(other(x), official(x))
    assert list(ours.state_dict()) == list(official.state_dict()) == list(PARAMETERS)


def test_module_is_the_function() -> None:
    mixer = AFFMixer(16, 4, sparsity_threshold=0.2, activation="gelu", dtype=torch.float64)
    nn.init.normal_(mixer.w1)
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    parameters = (mixer.w1, mixer.b1, mixer.w2, mixer.b2)
    assert torch.equal(mixer(x), fused_aff_mixer(x, *parameters, sparsity_threshold=0.2, activation="gelu"))
    assert torch.equal(copy.deepcopy(mixer)(x), mixer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 12}, "AFFMixer: expected channels to be a multiple of num_blocks=8, got 12"),
        ({"channels": 16, "hidden_size_factor": 0}, "AFFMixer: expected hidden_size_factor >= 1, got 0"),
        ({"channels": 16, "sparsity_threshold": -1.0}, "AFFMixer: expected sparsity_threshold >= 0, got -1.0"),
        (
            {"channels": 16, "activation": "prelu"},
            "AFFMixer: expected activation to be one of ['relu', 'silu', 'gelu', 'tanh', 'identity'], got 'prelu'",
        ),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        AFFMixer(**arguments)
    assert str(caught.value) == message


# --- the official interface


def test_official_attributes() -> None:
    official, ours = AFNO2D_channelfirst(48, 8, nn.SiLU, 3), AFFMixer(48, 8, 3, 0.03, "silu")
    for name in ("hidden_size", "num_blocks", "block_size", "hidden_size_factor", "sparsity_threshold"):
        assert getattr(ours, name) == getattr(official, name), name
    assert ours.scale == 0.02
    assert isinstance(ours.act, nn.SiLU)
    assert isinstance(ours.act2, nn.SiLU)


def test_forward_takes_a_spatial_size() -> None:
    mixer, x = AFFMixer(16), torch.randn(1, 16, 6, 5)
    assert torch.equal(mixer(x, spatial_size=(6, 5)), mixer(x))
    assert torch.equal(mixer(x, (6, 5)), mixer(x))


def test_assigning_activations_changes_the_result() -> None:
    """Code that exchanges every ReLU of a network must not be ignored."""
    mixer, x = AFFMixer(16, activation="relu"), torch.randn(1, 16, 6, 5)
    nn.init.normal_(mixer.w2)
    before = mixer(x)
    mixer.act = nn.SiLU()
    with pytest.raises(ValueError, match=r"expected act and act2 to be one of ReLU, .*, got SiLU\(\) and ReLU\(\)"):
        mixer(x)
    mixer.act2 = nn.SiLU()
    assert mixer.activation == "silu"
    assert not torch.equal(mixer(x), before)
    mixer.activation = "relu"
    assert torch.equal(mixer(x), before)
    with pytest.raises(ValueError, match="expected activation to be one of"):
        mixer.activation = "prelu"
    mixer.act = mixer.act2 = nn.GELU(approximate="tanh")
    with pytest.raises(ValueError, match="expected act and act2 to be one of"):
        mixer(x)


def test_profile_module_counts_as_the_official_profiler() -> None:
    """AFFNet-ET's nine mixers at 256x256: their part of its 1.428 M parameters and 361.9 M multiply-adds."""
    total_params = total_macs = 0.0
    for channels, size, blocks in ((64, 32, 2), (104, 16, 4), (144, 8, 3)):
        x = torch.randn(1, channels, size, size)
        y, params, macs = AFFMixer(channels).profile_module(x)
        assert y.shape == x.shape
        total_params += blocks * params
        total_macs += blocks * macs
    assert (total_params, total_macs) == (56_832, 18_870_272)
    _, params, macs = AFFMixer(32, 4, 3).profile_module(torch.randn(5, 32, 7, 9))
    assert params == sum(parameter.numel() for name, parameter in AFFMixer(32, 4, 3).named_parameters() if "w" in name)
    assert macs == 5 * 63 * (params + 5 * 32 * 4)


def test_a_named_backend() -> None:
    mixer, x = AFFMixer(16, backend="reference"), torch.randn(1, 16, 6, 5)
    assert "backend='reference'" in repr(mixer)
    assert "backend" not in repr(AFFMixer(16))
    assert torch.equal(mixer(x), fused_aff_mixer(x, mixer.w1, mixer.b1, mixer.w2, mixer.b2, backend="reference"))
    with pytest.raises(NotImplementedError, match="backend='cuda', which cannot"):
        AFFMixer(16, backend="cuda")(x)
    with pytest.raises(ValueError, match=r"AFFMixer: expected backend to be None or one of \[.*\], got 'gpu'"):
        AFFMixer(16, backend="gpu")


# --- tracing


class ConvNet(nn.Module):
    """Convolution, BatchNorm and mixer, as in every block of the published networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.filter = AFFMixer(16, 4, activation="silu")
        self.head = nn.Linear(16, 5)
        for parameter in self.filter.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.filter(self.norm(self.conv(x))).mean((2, 3)))


def conv_net() -> ConvNet:
    torch.manual_seed(0)
    net = ConvNet()
    net(torch.randn(4, 3, 8, 8))  # running statistics
    return net.eval()


def test_symbolic_trace() -> None:
    net, x = conv_net(), torch.randn(2, 3, 9, 7)
    traced = torch.fx.symbolic_trace(net)
    assert list(traced.state_dict()) == list(net.state_dict())
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [fused_aff_mixer]
    assert torch.equal(traced(x), net(x))
    for loss in (net(x).square().sum(), traced(x).square().sum()):
        loss.backward()
    for name, parameter in traced.named_parameters():
        torch.testing.assert_close(parameter.grad, net.get_parameter(name).grad)


def test_symbolic_trace_of_the_function() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = AFFMixer(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            mixer = self.mixer
            return fused_aff_mixer(x, mixer.w1, mixer.b1, mixer.w2, mixer.b2, activation="gelu", backend="reference")

    net, x = Direct(), torch.randn(2, 16, 6, 5)
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


def test_convolution_and_norm_fuse() -> None:
    from torch.fx.experimental.optimization import fuse

    net, x = conv_net(), torch.randn(2, 3, 9, 7)
    fused = fuse(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), net(x))


def test_features_before_and_after_the_mixer() -> None:
    """Feature extractors keep a part of the traced graph."""
    net, x = conv_net(), torch.randn(2, 3, 9, 7)
    traced = torch.fx.symbolic_trace(net)
    (mixer,) = (node for node in traced.graph.nodes if node.target is fused_aff_mixer)
    for node in reversed(traced.graph.nodes):
        if node.op == "output":
            node.args = (mixer,)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    torch.testing.assert_close(traced(x), net.filter(net.norm(net.conv(x))))


def test_torchvision_feature_extraction() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction", exc_type=ImportError)
    net, x = conv_net(), torch.randn(2, 3, 9, 7)
    features = extraction.create_feature_extractor(net, {"norm": "before", "filter": "after"})(x)
    torch.testing.assert_close(features["after"], net.filter(net.norm(net.conv(x))))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_torchscript_trace_save_load_and_train(tmp_path: Path, grad: bool) -> None:
    net, x = conv_net(), torch.randn(2, 3, 9, 7)
    with torch.set_grad_enabled(grad):
        torch.jit.trace(net, x).save(tmp_path / "net.pt")
    loaded, other = torch.jit.load(tmp_path / "net.pt"), torch.randn(3, 3, 12, 12)
    assert list(loaded.state_dict()) == list(net.state_dict())
    torch.testing.assert_close(loaded(other), net(other))
    for model in (loaded, net):
        model(x).square().sum().backward()
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter.grad, net.get_parameter(name).grad)


def test_compiled_module_matches_eager() -> None:
    mixer, x = AFFMixer(16, 4, activation="gelu"), torch.randn(2, 16, 6, 5)
    torch.testing.assert_close(torch.compile(mixer, backend="eager", fullgraph=True)(x), mixer(x))
