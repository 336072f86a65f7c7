"""replace_mixers: which mixers it takes, what it refuses, and that the fused operator runs afterwards."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from affnet_kernels import AFFMixer, replace_mixers
from tests.official_mixer import (
    AFNO2D,
    AFNO2D_channelfirst,
    ChannelsFirstAFNO,
    ChannelsLastFilter,
    HalfFilter,
    NaNFilter,
    Stage,
    make_model,
)


class FusedCalls(TorchDispatchMode):
    """Counts how often the fused operator runs."""

    count = 0

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.affnet_kernels.mixer_forward.default
        return func(*args, **(kwargs or {}))


def fused_calls(model: nn.Module, x: Tensor) -> int:
    with FusedCalls() as calls:
        model(x)
    return calls.count


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(3)).to(dtype)


def assert_replaced(model: nn.Module, expected: Tensor, mixers: int = 2) -> None:
    """The model runs the fused operator in every mixer, and computes what it did."""
    assert fused_calls(model, image()) == mixers
    torch.testing.assert_close(model(image()), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# --- what the replacement keeps


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.GELU, nn.Identity, nn.Tanh])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_model_computes_what_it_did(act: type[nn.Module], factor: int) -> None:
    model = make_model(act=act, hidden_size_factor=factor)
    expected, keys = model(image()), list(model.state_dict())
    assert fused_calls(model, image()) == 0
    replaced = replace_mixers(model)
    assert list(replaced) == ["1.filter", "2.filter"]
    assert all(isinstance(module, AFNO2D_channelfirst) for module in replaced.values())
    assert isinstance(model[1].filter, AFFMixer)
    assert isinstance(model[2].filter, AFFMixer)
    assert list(model.state_dict()) == keys
    assert_replaced(model, expected)


def test_parameters_mode_dtype_and_hooks_are_kept() -> None:
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
    model(image(torch.bfloat16)).sum().backward()
    assert calls == ["before", "forward", "backward"]
    model.load_state_dict(model.state_dict())
    assert calls[3:] == ["state dict", "load"]
    weight = model[1].filter.w1.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].filter.w1, weight), "the optimizer still updates the model"


def test_hooks_that_take_their_module_get_the_replacement() -> None:
    model = make_model()
    modules: list[nn.Module] = []
    model[1].filter.register_load_state_dict_pre_hook(lambda module, *_: modules.append(module))
    replace_mixers(model)  # the originals are not kept
    gc.collect()
    model.load_state_dict(model.state_dict())
    assert modules == [model[1].filter]


def test_the_order_of_parameters_is_kept() -> None:
    """An optimizer's state dict numbers them."""

    class Reordered(AFNO2D_channelfirst):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for name in ("b2", "w2", "b1", "w1"):
                parameter = self._parameters.pop(name)
                self._parameters[name] = parameter

    model = nn.Sequential(Reordered(16))
    names = [name for name, _ in model.named_parameters()]
    assert names == ["0.b2", "0.w2", "0.b1", "0.w1"]
    replaced = replace_mixers(model)
    assert [name for name, _ in model.named_parameters()] == names
    replaced.undo()
    assert [name for name, _ in model.named_parameters()] == names


def test_the_random_state_is_left_alone() -> None:
    model = make_model()
    state = torch.get_rng_state()
    replace_mixers(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_undo() -> None:
    model = make_model()
    originals = [model[1].filter, model[2].filter]
    replaced = replace_mixers(model)
    with torch.no_grad():
        model[1].filter.w1.mul_(2)
    model.eval()
    model[2].filter.w2 = nn.Parameter(torch.zeros_like(model[2].filter.w2))
    expected = model(image())
    replaced.undo()
    assert [model[1].filter, model[2].filter] == originals
    assert not model[1].filter.training
    assert fused_calls(model, image()) == 0
    torch.testing.assert_close(model(image()), expected, rtol=1e-5, atol=1e-5)
    assert not replaced
    assert list(replace_mixers(model)) == ["1.filter", "2.filter"], "and again"


def test_undo_refuses_what_it_cannot_honour() -> None:
    model = make_model()
    replaced = replace_mixers(model)
    first, second = model[1].filter, model[2].filter
    model[2].filter = torch.compile(second, backend="eager")
    with pytest.raises(ValueError, match=r"undo: expected the AFFMixer .* at 2.filter, got OptimizedModule"):
        replaced.undo()
    model[2].filter = second
    model[1].order = [first]
    with pytest.raises(ValueError, match=r"undo: expected mixers that are held as submodules only, .* at 1.order\[0\]"):
        replaced.undo()
    assert model[1].filter is first
    assert model[2].filter is second


def test_training_follows_the_official_mixer() -> None:
    """Five steps of training give the losses that the official mixer gives."""
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


# --- the states a model may be in


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model)


class Adapter(nn.Module):
    """How PEFT wraps a model and a module of it: the original beside a trained copy."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original_module = original
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(original)})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.modules_to_save["default"](*args, **kwargs)


def adapted(model: nn.Module) -> nn.Module:
    frozen(model)
    model[1].filter = Adapter(model[1].filter)
    return model


def checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model[1].filter = checkpoint_wrapper(model[1].filter)
    return model


def hooked_like_accelerate(module: nn.Module) -> nn.Module:
    """What accelerate's `add_hook_to_module` does: a forward on the instance, around the one that was there."""
    module._hf_hook = object()
    module._old_forward = module.forward

    def new_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module._old_forward(*args, **kwargs)

    module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)
    return module


def listed_parents(model: nn.Module) -> nn.Module:
    model.order = [model[1], model[2]]  # their mixers are looked up when they are called
    return model


@pytest.mark.parametrize(
    "prepare", [frozen, averaged, nn.DataParallel, adapted, checkpointed, hooked_like_accelerate, listed_parents]
)
def test_a_model_in_any_of_these_states(prepare: Callable[[nn.Module], nn.Module]) -> None:
    model = prepare(make_model())
    expected = model(image())
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    replaced = replace_mixers(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert_replaced(model, expected)
    replaced.undo()
    assert fused_calls(model, image()) == 0


def test_a_shared_mixer_stays_shared() -> None:
    mixer = AFNO2D_channelfirst(16)
    model = nn.Sequential(Stage(mixer), Stage(mixer))
    replaced = replace_mixers(model)
    assert list(replaced) == ["0.filter", "1.filter"]
    assert model[0].filter is model[1].filter
    replaced.undo()
    assert model[0].filter is mixer
    assert model[1].filter is mixer


def test_tied_parameters_stay_tied() -> None:
    model = make_model()
    model[2].filter = AFNO2D_channelfirst(16)
    for name in ("w1", "b1", "w2", "b2"):
        setattr(model[2].filter, name, getattr(model[1].filter, name))
    expected = model(image())
    replace_mixers(model)
    assert all(model[1].filter._parameters[name] is model[2].filter._parameters[name] for name in ("w1", "b2"))
    assert_replaced(model, expected)


@pytest.mark.usefixtures("process_group")
def test_a_model_in_ddp() -> None:
    model = nn.parallel.DistributedDataParallel(make_model())
    expected = model(image())
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    replace_mixers(model)
    assert_replaced(model, expected)
    model(image()).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("check", [True, False])
def test_a_model_without_values(check: bool) -> None:
    model = make_model().to("meta")
    assert list(replace_mixers(model, check=check)) == ["1.filter", "2.filter"]
    assert model(image().to("meta")).is_meta


@pytest.mark.parametrize(
    "parametrize",
    [
        lambda mixer: parametrizations.weight_norm(mixer, "w1"),
        lambda mixer: nn.utils.parametrizations.spectral_norm(mixer, "w1"),
        lambda mixer: prune.l1_unstructured(mixer, "w1", amount=0.5),
    ],
)
def test_a_parametrized_mixer_is_left_with_a_warning(parametrize: Callable[[nn.Module], nn.Module]) -> None:
    model = make_model()
    parametrize(model[1].filter)
    expected = model(image())
    with pytest.warns(UserWarning, match=r"left 1.filter as it is: w1 of .*AFNO2D_channelfirst is parametrized"):
        replaced = replace_mixers(model)
    assert list(replaced) == ["2.filter"]
    assert_replaced(model, expected, mixers=1)


def test_only_parametrized_mixers_are_an_error_that_names_one() -> None:
    model = nn.Sequential(Stage(AFNO2D_channelfirst(16)))
    parametrizations.weight_norm(model[0].filter, "w2")
    with pytest.raises(ValueError, match=r"got 0.filter: w2 of .*AFNO2D_channelfirst is parametrized"):
        replace_mixers(model)


def test_parametrize_the_replacement() -> None:
    model = make_model()
    replace_mixers(model)
    parametrizations.weight_norm(model[1].filter, "w1")
    assert fused_calls(model, image()) == 2


# --- the comparison does not touch the user's model or depend on the user's defaults


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "defaults",
    [
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.inference_mode(),
        lambda: FakeTensorMode(),
    ],
)
def test_under_the_users_defaults(defaults: Callable[[], Any]) -> None:
    model = make_model()
    expected = model(image())
    with defaults():
        replace_mixers(model)
    assert_replaced(model, expected)


def test_a_double_precision_model() -> None:
    model = make_model().double()
    replace_mixers(model)
    assert model(image(torch.float64)).dtype == torch.float64


class KeepsItsOutput(AFNO2D_channelfirst):
    def forward(self, x: Tensor, spatial_size: Any = None) -> Tensor:
        self.last = super().forward(x)
        return self.last


def test_a_mixer_that_keeps_its_last_output() -> None:
    """Such a tensor, not a leaf of the graph, cannot be deep-copied."""
    model = nn.Sequential(KeepsItsOutput(16))
    x = torch.randn(1, 16, 8, 8)
    expected = model(x)
    kept = model[0].last
    replaced = replace_mixers(model)
    assert replaced["0"].last is kept, "the comparison left it alone"
    assert fused_calls(model, x) == 1
    torch.testing.assert_close(model(x), expected)


def test_hooks_do_not_run_and_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock in a hook cannot be copied, and a bound method in one drags the whole model along."""

    class Recorder(nn.Sequential):
        lock = threading.Lock()
        calls = 0

        def record(self, *_: Any) -> None:
            with self.lock:
                self.calls += 1

    model = Recorder(*make_model())
    model[1].filter.lock = threading.Lock()
    model[1].filter.register_forward_hook(model.record)
    model[1].filter.register_forward_pre_hook(functools.partial(model.record, threading.Lock()))

    def refuse(*_: Any) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    replace_mixers(model)
    assert model.calls == 0
    model(image())
    assert model.calls == 2


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e4])
@pytest.mark.parametrize("scale", [0.0, 0.02])
def test_a_mixer_whose_branch_is_zero(threshold: float, scale: float) -> None:
    model = make_model(sparsity_threshold=threshold, scale=scale)
    expected = model(image())
    replace_mixers(model)
    assert_replaced(model, expected)


def test_a_saturated_mixer_with_nan() -> None:
    model = make_model()
    with torch.no_grad():
        model[1].filter.w1.fill_(float("nan"))
        model[2].filter.b2.fill_(float("inf"))
    assert list(replace_mixers(model)) == ["1.filter", "2.filter"]


def test_a_different_operator_is_found_though_the_branch_is_zero() -> None:
    model = nn.Sequential(HalfFilter(16, sparsity_threshold=0.5, scale=0.02))
    with pytest.raises(ValueError, match="HalfFilter"):
        replace_mixers(model)


# --- refusals: what a swap does not reach


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_child(model: nn.Module) -> nn.Module:
    model[1].filter = compiled(model[1].filter)
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model[1].compile(backend="eager")
    return model


def offloaded(model: nn.Module) -> nn.Module:
    hooked_like_accelerate(model[1].filter)
    return model


def own_forward(model: nn.Module) -> nn.Module:
    mixer = model[1].filter
    mixer.forward = types.MethodType(AFNO2D_channelfirst.forward, mixer)
    return model


def graphed(model: nn.Module) -> nn.Module:
    def forward(*args: Any) -> Any: ...

    forward.__module__ = "torch.cuda.graphs"  # where make_graphed_callables defines it
    model[1].forward = forward
    return model


def in_a_list(model: nn.Module) -> nn.Module:
    model[1].order = [model[1].norm, model[1].filter]
    return model


def in_a_dict(model: nn.Module) -> nn.Module:
    model.mixers = {"first": (model[1].filter,)}
    return model


def as_a_bound_method(model: nn.Module) -> nn.Module:
    model[1].mix = model[1].filter.forward
    return model


def in_a_partial(model: nn.Module) -> nn.Module:
    model[1].mix = functools.partial(torch.utils.checkpoint.checkpoint, model[1].filter, use_reentrant=False)
    return model


def in_a_closure(model: nn.Module) -> nn.Module:
    mixer = model[1].filter
    model[1].mix = lambda x: mixer(x)
    return model


def only_in_a_list(model: nn.Module) -> nn.Module:
    model.extra = [AFNO2D_channelfirst(16)]
    return model


def traced(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, image())


def exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (image(),)).module()


def with_a_hook_on_the_activation(model: nn.Module) -> nn.Module:
    model[1].filter.act.register_forward_hook(lambda *_: None)
    return model


def with_a_buffer(model: nn.Module) -> nn.Module:
    model[1].filter.register_buffer("steps", torch.zeros(1))
    return model


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (compiled, "_orig_mod.1.filter .*torch.compile has captured it; replace before compile"),
        (compiled_child, r"1.filter._orig_mod .*torch.compile has captured it; replace before compile"),
        (compiled_in_place, r"1.filter .*part of 1 \(Stage\): Module.compile has captured it; replace before compile"),
        (offloaded, "1.filter .*accelerate has put a forward of its own on it; replace before offload or dispatch"),
        (own_forward, "1.filter .*its forward is set on the instance and would be lost"),
        (graphed, "1.filter .*a CUDA graph has captured it; replace before make_graphed_callables"),
        (in_a_list, r"held as submodules only, got AFNO2D_channelfirst at 1.order\[1\]"),
        (in_a_dict, r"held as submodules only, got AFNO2D_channelfirst at Sequential.mixers\['first'\]\[0\]"),
        (as_a_bound_method, "held as submodules only, got AFNO2D_channelfirst at 1.mix.__self__"),
        (in_a_partial, r"held as submodules only, got AFNO2D_channelfirst at 1.mix.args\[0\]"),
        (in_a_closure, "held as submodules only, got AFNO2D_channelfirst at 1.mix, closed-over mixer"),
        (only_in_a_list, r"held as submodules only, got AFNO2D_channelfirst at Sequential.extra\[0\]"),
        (traced, "TorchScript has captured it; replace before torch.jit.trace"),
        (exported, "its forward was traced into a graph; replace before tracing or export"),
        (with_a_hook_on_the_activation, "hooks on its act would not run"),
        (with_a_buffer, "a swap would lose its buffers: steps"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_refuses_what_a_swap_does_not_reach(
    prepare: Callable[[nn.Module], nn.Module], message: str, check: bool
) -> None:
    model = prepare(make_model())
    modules = [id(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        replace_mixers(model, check=check)
    assert [id(module) for module in model.modules()] == modules, "the model is unchanged"


@pytest.mark.usefixtures("process_group")
def test_fully_shard_comes_after() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    sharded = make_model()
    fully_shard(sharded, mesh=mesh)
    with pytest.raises(ValueError, match="replace before fully_shard"):
        replace_mixers(sharded)

    model = make_model()
    expected = model(image())
    replace_mixers(model)
    fully_shard(model, mesh=mesh)
    assert_replaced(model, expected)


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("original_parameters", [True, False])
def test_fsdp_comes_after(original_parameters: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(
        make_model(), device_id=torch.device("cpu"), use_orig_params=original_parameters, sync_module_states=False
    )
    with pytest.raises(ValueError, match="FSDP has sharded it; replace before FSDP"):
        replace_mixers(model)


# --- refusals: what is not the filter


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2)),
            "modules that own the parameters w1, b1, w2, b2 .* got Sequential without any",
        ),
        (nn.Sequential(AFFMixer(8)), r"got Sequential, whose mixers are already replaced \(1 AFFMixer\)"),
        (AFNO2D_channelfirst(16), "expected a model that contains mixers, got a mixer, AFNO2D_channelfirst"),
        (Stage(AFNO2D(16)), r"filter \(AFNO2D\): expected .* adaptive frequency filter, got channels-last AFNO, which"),
        (Stage(ChannelsFirstAFNO(16)), r"filter \(ChannelsFirstAFNO\): expected .* got AFNO, which returns"),
        (Stage(ChannelsLastFilter(16)), r"got its channels-last form, \[B, H, W, C\]; AFFMixer takes \[B, C, H, W\]"),
        (Stage(HalfFilter(16)), r"got one whose output differs by \d+.\d% of the mixer branch"),
        (Stage(NaNFilter(16)), "got one that returns NaN or infinity for finite parameters and input"),
        (Stage(AFNO2D_channelfirst(16, act=nn.PReLU)), "expected an activation without parameters, out of ReLU, SiLU"),
    ],
)
def test_refuses_what_is_not_the_filter(model: nn.Module, message: str) -> None:
    children = list(model.modules())
    with pytest.raises(ValueError, match=message) as caught:
        replace_mixers(model)
    assert "check=False" not in str(caught.value), "that would change the model's results"
    assert list(model.modules()) == children, "the model is unchanged"


def test_a_second_call_says_that_the_mixers_are_replaced() -> None:
    model = make_model()
    replace_mixers(model)
    with pytest.raises(ValueError, match=r"got Sequential, whose mixers are already replaced \(2 AFFMixer\)"):
        replace_mixers(model)


def test_one_bad_mixer_leaves_the_model_alone() -> None:
    model = nn.Sequential(Stage(AFNO2D_channelfirst(16)), Stage(HalfFilter(16)))
    with pytest.raises(ValueError, match="HalfFilter"):
        replace_mixers(model)
    assert isinstance(model[0].filter, AFNO2D_channelfirst)


def test_without_check_the_name_and_options_must_fit() -> None:
    with pytest.raises(ValueError, match="got AFNO by its name"):
        replace_mixers(Stage(AFNO2D(16)), check=False)
    model = make_model()
    model[1].filter.hard_thresholding_fraction = 0.5
    with pytest.raises(ValueError, match=r"got hard_thresholding_fraction=0.5, which may drop frequencies"):
        replace_mixers(model, check=False)
    assert list(replace_mixers(model)) == ["1.filter", "2.filter"], "the official forward does not use it"
