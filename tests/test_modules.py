"""AFFMixer, and its exchange for official-style mixers inside a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affnet_kernels import AFFMixer, fused_aff_mixer, replace_mixers
from tests.helpers import PARAMETERS


class OfficialStyleMixer(nn.Module):
    """A mixer as people have it in their models: the published parameters and formula, another class."""

    def __init__(self, channels: int, blocks: int = 8, act: type[nn.Module] = nn.ReLU, factor: int = 1) -> None:
        super().__init__()
        size = channels // blocks
        hidden = size * factor
        self.sparsity_threshold = 0.03
        for name, shape in {
            "w1": (2, blocks, size, hidden),
            "b1": (2, blocks, hidden),
            "w2": (2, blocks, hidden, size),
            "b2": (2, blocks, size),
        }.items():
            self.register_parameter(name, nn.Parameter(0.3 * torch.randn(shape)))
        self.act = act()
        self.act2 = act()

    def forward(self, x: Tensor) -> Tensor:
        X = torch.fft.rfft2(x.float(), norm="ortho").unflatten(1, (self.w1.shape[1], -1))

        def layer(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
            product = torch.einsum("bkihw,kio->bkohw", a, torch.complex(w[0].float(), w[1].float()))
            return product + torch.complex(b[0].float(), b[1].float())[..., None, None]

        O1 = layer(X, self.w1, self.b1)
        O2 = layer(torch.complex(self.act(O1.real), self.act2(O1.imag)), self.w2, self.b2)
        M = torch.complex(
            F.softshrink(O2.real, self.sparsity_threshold), F.softshrink(O2.imag, self.sparsity_threshold)
        )
        return torch.fft.irfft2((M * X).flatten(1, 2), s=x.shape[-2:], norm="ortho").to(x.dtype) + x


class AFNO(OfficialStyleMixer):
    """The same parameters, another operator: AFNO has no product with the spectrum."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Stage(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 16)
        self.filter = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.filter(self.norm(x)) + x


def make_model(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        Stage(OfficialStyleMixer(16, **options)),
        Stage(OfficialStyleMixer(16, 4, **options)),
    )


def test_parameters_and_initialisation() -> None:
    torch.manual_seed(0)
    mixer = AFFMixer(320, num_blocks=8, hidden_size_factor=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}
    assert shapes == {"w1": (2, 8, 40, 80), "b1": (2, 8, 80), "w2": (2, 8, 80, 40), "b2": (2, 8, 40)}
    assert mixer.w1.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(mixer.w1.mean().item()) < 1e-3
    assert "channels=320, num_blocks=8, hidden_size_factor=2" in repr(mixer)


def test_state_dict_is_the_official_one_both_ways() -> None:
    official, ours = OfficialStyleMixer(16, 4), AFFMixer(16, 4, sparsity_threshold=0.03)
    ours.load_state_dict(official.state_dict(), strict=True)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(ours(x), official(x))
    other = OfficialStyleMixer(16, 4)
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


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.GELU, nn.Identity])
@pytest.mark.parametrize("factor", [1, 2])
def test_replace_gives_the_same_answer(act: type[nn.Module], factor: int) -> None:
    model = make_model(act=act, factor=factor)
    x = torch.randn(2, 3, 12, 10)
    expected, keys = model(x), list(model.state_dict())
    replaced = replace_mixers(model)
    assert list(replaced) == ["1.filter", "2.filter"]
    assert all(isinstance(module, OfficialStyleMixer) for module in replaced.values())
    assert isinstance(model[1].filter, AFFMixer)
    assert isinstance(model[2].filter, AFFMixer)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_replace_keeps_parameters_mode_dtype_and_hooks() -> None:
    model = make_model().to(torch.bfloat16)
    model[2].eval()
    calls: list[str] = []
    model[1].filter.register_forward_hook(lambda *_: calls.append("forward"))
    model[1].filter.register_forward_pre_hook(lambda *_: calls.append("before"))
    model[1].filter.register_full_backward_hook(lambda *_: calls.append("backward"))
    model[1].filter.register_state_dict_post_hook(lambda *_: calls.append("state dict"))
    model[1].filter.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_mixers(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert [stage.filter.training for stage in model[1:]] == [True, False]
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    model(x).sum().backward()
    assert calls == ["before", "forward", "backward"]
    model.load_state_dict(model.state_dict())
    assert calls[3:] == ["state dict", "load"]
    weight = model[1].filter.w1.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].filter.w1, weight), "the optimizer goes on working"


def test_undo() -> None:
    model = make_model()
    originals = [model[1].filter, model[2].filter]
    x = torch.randn(1, 3, 8, 8)
    replaced = replace_mixers(model)
    with torch.no_grad():
        model[1].filter.w1.mul_(2)
    model.eval()
    model[2].filter.w2 = nn.Parameter(torch.zeros_like(model[2].filter.w2))
    expected = model(x)
    replaced.undo()
    assert [model[1].filter, model[2].filter] == originals
    assert not model[1].filter.training
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert not replaced
    assert list(replace_mixers(model)) == ["1.filter", "2.filter"], "and again"


def test_a_shared_mixer_stays_shared() -> None:
    mixer = OfficialStyleMixer(16)
    model = nn.Sequential(Stage(mixer), Stage(mixer))
    replaced = replace_mixers(model)
    assert list(replaced) == ["0.filter", "1.filter"]
    assert model[0].filter is model[1].filter
    replaced.undo()
    assert model[0].filter is mixer
    assert model[1].filter is mixer


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "expected a model with modules that own the parameters w1, b1, w2, b2"),
        (nn.Sequential(AFFMixer(8)), "expected a model with modules that own the parameters w1, b1, w2, b2"),
        (OfficialStyleMixer(16), "expected a model that contains mixers, got a mixer, OfficialStyleMixer"),
        (Stage(AFNO(16)), r"filter \(AFNO\): expected a module that computes the adaptive frequency filter, got one"),
        (Stage(OfficialStyleMixer(16, act=nn.PReLU)), "expected an activation without parameters, out of ReLU, SiLU"),
        (Stage(OfficialStyleMixer(16).to("meta")), "got meta tensors; pass check=False"),
    ],
)
def test_replace_refuses(model: nn.Module, message: str) -> None:
    children = list(model.modules())
    with pytest.raises(ValueError, match=message):
        replace_mixers(model)
    assert list(model.modules()) == children, "the model is unchanged"


def test_one_bad_mixer_leaves_the_model_alone() -> None:
    model = nn.Sequential(Stage(OfficialStyleMixer(16)), Stage(AFNO(16)))
    with pytest.raises(ValueError, match="AFNO"):
        replace_mixers(model)
    assert isinstance(model[0].filter, OfficialStyleMixer)


def test_without_check_the_shapes_decide() -> None:
    model = Stage(OfficialStyleMixer(16).to("meta"))
    assert list(replace_mixers(model, check=False)) == ["filter"]


def test_training_follows_the_reference() -> None:
    """Five steps of training give the losses that the official-style mixer gives."""
    losses: dict[str, list[float]] = {"official": [], "ours": []}
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(4, 3, 14, 14, generator=generator), torch.randn(4, 16, 14, 14, generator=generator)
    for name in losses:
        model = make_model()
        if name == "ours":
            replace_mixers(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    assert losses["ours"] == pytest.approx(losses["official"], rel=1e-4)
    assert losses["ours"][-1] < losses["ours"][0]
