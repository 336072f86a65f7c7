"""Checkpoints in every wrapping, what a mismatch says, files that are none, and `convert`."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affnet_kernels import __main__ as cli
from affnet_kernels.models import (
    MODELS,
    AFFNet,
    affnet_et,
    affnet_t,
    create_model,
    from_checkpoint,
    load_checkpoint,
    read_checkpoint,
)
from affnet_kernels.models.checkpoint import network_name, recognise
from affnet_kernels.models.token_mixers import MIXERS
from tests.networks import PUBLISHED, images, official_logits, official_state_dict, seeded_state_dict

State = dict[str, Tensor]


def tiny(**options: Any) -> AFFNet:
    return AFFNet((8, 8, 8, 16, 24), (1, 2, 1, 2, 1), 2, **({"num_classes": 5} | options))


def weights(model: nn.Module) -> State:
    """Weights none of which is what a new network has, in the order of the network's keys."""
    drawn = seeded_state_dict(model)
    return {key: drawn[key] for key in model.state_dict()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def compiled_stage(state: State) -> State:
    return {key.replace("layer_1.", "layer_1._orig_mod."): value for key, value in state.items()}


def beside(state: State) -> dict[str, Any]:
    """What training code stores beside the weights."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 3, "iterations": 100, "best_metric": 73.0, "optim_state_dict": optimizer}


# How training code stores a model: the official one, DDP, torch.compile, DeepSpeed, Lightning, timm, EMA and SWA.
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "flat": lambda s: s,
    "official": lambda s: beside(s) | {"gradient_scalar_state_dict": {}, "model_state_dict": s},
    "DDP": lambda s: {"state_dict": prefixed("module.", s), "steps": torch.tensor(3)},
    "compiled DDP": lambda s: {"model": prefixed("module._orig_mod.", s)},
    "DDP compiled": lambda s: prefixed("_orig_mod.module.", s),
    "compiled stage": compiled_stage,
    "DeepSpeed": lambda s: {"module": s, "dp_world_size": 8},
    "Lightning": lambda s: {"state_dict": prefixed("model.", s), "callbacks": {}},
    "Lightning and EMA": lambda s: {"state_dict": prefixed("ema_model.", negative(s)) | prefixed("model.", s)},
    "timm": lambda s: {"state_dict": s, "state_dict_ema": negative(s), "args": argparse.Namespace(lr=0.1)},
    "EMA first": lambda s: {"ema": {"module": negative(s), "updates": 10}, "model": {"module": s}},
    "EMA only": lambda s: {"model_ema": s, "epoch": 3},
    "SWA": lambda s: {"n_averaged": torch.tensor(3)} | prefixed("module.", s),
}


def negative(state: State) -> State:
    return {key: -value for key, value in state.items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def copy_of(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(got: State, expected: State) -> None:
    assert list(got) == list(expected)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_official_checkpoints_give_the_official_logits(name: str, activation: str, tmp_path: Path) -> None:
    weights = seeded_state_dict(create_model(name))
    state = {key: weights[key] for key in official_state_dict(name, "layer_norm_2d")}
    model = from_checkpoint(saved(WRAPPINGS["official"](state), tmp_path / "a.pt"), activation=activation)
    assert not model.training
    with torch.no_grad():
        assert (model(images()) - official_logits(name, activation)).abs().max() <= 2e-6


@pytest.mark.parametrize("norm", ["layer_norm_2d", "batch_norm_2d"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_official_keys_tell_network_and_norm(name: str, norm: str, tmp_path: Path) -> None:
    state = {key: torch.randn(shape) for key, shape in official_state_dict(name, norm).items()}
    path = saved({"model_state_dict": state}, tmp_path / "a.pth")
    model = from_checkpoint(path)
    assert model.options == create_model(name, norm=norm).options
    got = model.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(got[key], value.to(got[key].dtype), rtol=0, atol=0)
    assert network_name(model.options) == name


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_recognised(name: str) -> None:
    model = create_model(name, num_classes=3, in_chans=1)
    told = recognise(model.state_dict())
    assert told == {key: model.options[key] for key in told}
    assert network_name(told) == name


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_are_seen_through(wrapping: str, tmp_path: Path) -> None:
    state = weights(tiny())
    path = saved(WRAPPINGS[wrapping](state), tmp_path / "a.pt")
    assert_same(read_checkpoint(path), state)
    load_checkpoint(model := tiny(), path)
    assert_same(model.state_dict(), state)


@pytest.mark.parametrize("wrapping", ["Lightning and EMA", "timm", "EMA first", "EMA only", "SWA"])
def test_averaged_weights(wrapping: str, tmp_path: Path) -> None:
    state = weights(tiny())
    path = saved(WRAPPINGS[wrapping](state), tmp_path / "a.pt")
    expected = state if wrapping in ("EMA only", "SWA") else negative(state)
    assert_same(read_checkpoint(path, ema=True), expected)
    load_checkpoint(model := tiny(), path, ema=True)
    assert_same(model.state_dict(), expected)
    assert_same(from_checkpoint(path, ema=True).state_dict(), expected)


def test_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    state = weights(tiny())
    save_file(prefixed("module.", state), tmp_path / "a.safetensors")
    got = from_checkpoint(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(got[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_was_read_outlives_the_file(suffix: str, tmp_path: Path) -> None:
    state, path = weights(tiny()), tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(state, path)
    got = read_checkpoint(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(got[key], state[key]) for key in state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float_types_meet(dtype: torch.dtype, tmp_path: Path) -> None:
    state = tiny().to(dtype).state_dict()
    path = saved(state, tmp_path / "a.pt")
    for model in (tiny(), tiny().bfloat16()):
        before = {key: (value.dtype, value.data_ptr()) for key, value in model.state_dict(keep_vars=True).items()}
        load_checkpoint(model, path)
        after = model.state_dict(keep_vars=True)
        assert {key: (value.dtype, value.data_ptr()) for key, value in after.items()} == before
        assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in after.items())


class Wrapped(nn.Module):
    """As DistributedDataParallel, which needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def with_compiled_stage() -> nn.Module:
    model = tiny()
    model.layer_2 = torch.compile(model.layer_2)
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: Wrapped(tiny()),
        lambda: torch.compile(tiny()),
        lambda: torch.compile(Wrapped(tiny())),
        lambda: Wrapped(torch.compile(tiny())),
        lambda: torch.optim.swa_utils.AveragedModel(tiny()),
        with_compiled_stage,
    ],
)
def test_wrapped_models_load(wrap: Callable[[], nn.Module], tmp_path: Path) -> None:
    state = weights(tiny())
    path = saved({"state_dict": prefixed("module.", state)}, tmp_path / "a.pt")
    model = wrap()
    load_checkpoint(model, path)
    got = {key: value for key, value in model.state_dict().items() if key != "n_averaged"}
    assert all(torch.equal(a, b) for a, b in zip(got.values(), state.values(), strict=True))


def test_any_module_loads_and_keeps_its_prefixes(tmp_path: Path) -> None:
    first, second = (nn.ModuleDict({"encoder": nn.Linear(2, 2), "seg_head": nn.Linear(2, 2)}) for _ in range(2))
    load_checkpoint(second, saved(first.state_dict(), tmp_path / "a.pt"))
    assert_same(second.state_dict(), first.state_dict())


def test_options_go_before_what_the_file_tells(tmp_path: Path) -> None:
    path = saved(tiny(mixer="reference").state_dict(), tmp_path / "a.pt")
    options = {"activation": "relu", "norm": "layer_norm", "output_stride": 16, "mixer": "reference"}
    model = from_checkpoint(path, **options)
    assert {key: model.options[key] for key in options} == options


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = saved(weights(tiny()), tmp_path / "a.pt")
    own = tiny(num_classes=9)
    before = copy_of(own)
    load_checkpoint(own, path, new_classifier=True)
    for model in (own, from_checkpoint(path, num_classes=9)):
        assert model.eval()(torch.ones(1, 3, 32, 32)).shape == (1, 9)
        assert torch.equal(model.conv_1.block.conv.weight, read_checkpoint(path)["conv_1.block.conv.weight"])
    assert torch.equal(own.classifier.fc.weight, before["classifier.fc.weight"])
    headless = from_checkpoint(path, num_classes=0)
    assert isinstance(headless.get_classifier(), nn.Identity)
    path = saved(headless.state_dict(), path)
    assert from_checkpoint(path).options == headless.options
    load_checkpoint(tiny(), path, new_classifier=True)


@pytest.mark.parametrize("mixer", MIXERS)
def test_rival_mixers_are_recognised(mixer: str, tmp_path: Path) -> None:
    model = tiny(mixer=mixer, img_size=64)
    loaded = from_checkpoint(saved(model.state_dict(), tmp_path / "a.pt"), img_size=64)
    assert loaded.options["mixer"] == ("fused" if mixer == "reference" else mixer)
    assert_same(loaded.state_dict(), model.state_dict())


ET = r"load_checkpoint: expected the weights of affnet_et \(layer_norm_2d, 1000 classes, in_chans=3\), got "


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            affnet_t,
            r"those of affnet_t \(layer_norm_2d, 1000 classes, in_chans=3\) in .*a\.pt: 338 of another shape "
            r"\(layer_1\.0\.block\.exp_1x1\.block\.conv\.weight: \[64, 16, 1, 1\] for \[32, 16, 1, 1\], .*, \.\.\.\); "
            "build affnet_t, as from_checkpoint does$",
        ),
        (
            lambda: affnet_et(norm="batch_norm_2d"),
            r"those of affnet_et \(batch_norm_2d, .*: 63 unexpected \(layer_3\.1\.global_rep\.0\.norm1\.running_mean, "
            r".*, \.\.\.\); build affnet_et with norm='batch_norm_2d', as from_checkpoint does$",
        ),
        (
            lambda: affnet_et(num_classes=10),
            r"2 of another shape \(classifier\.fc\.weight: \[10, 576\] for \[1000, 576\], classifier\.fc\.bias: \[10\] "
            r"for \[1000\]\); build affnet_et with num_classes=10, as from_checkpoint does, or keep the network's own "
            "classifier by new_classifier=True$",
        ),
        (
            lambda: affnet_et(in_chans=1),
            r"1 of another shape \(conv_1\.block\.conv\.weight: \[16, 1, 3, 3\] for \[16, 3, 3, 3\]\); "
            "build affnet_et with in_chans=1, as from_checkpoint does$",
        ),
        (
            lambda: affnet_et(mixer="attention"),
            r"36 missing \(layer_3\.1\.global_rep\.0\.filter\.w1, .*\), 18 unexpected \(.*\); "
            "build affnet_et with mixer='attention', as from_checkpoint does$",
        ),
        (
            lambda: from_headless(affnet_et()),
            r"\(layer_norm_2d, no classifier, .* 2 missing \(classifier\.fc\.weight, classifier\.fc\.bias\); "
            "new_classifier=True keeps the network's own classifier$",
        ),
        (
            lambda: nn.ModuleDict({"conv1": nn.Conv2d(3, 64, 7, bias=False), "bn1": nn.BatchNorm2d(64)}),
            r".*a\.pt with the keys conv1\.weight, bn1\.weight, bn1\.bias, \.\.\.: 416 missing \(.*\), 6 unexpected "
            r"\(conv1\.weight, bn1\.weight, bn1\.bias, \.\.\.\)$",
        ),
        (
            lambda: nn.ModuleDict({"encoder": nn.ModuleDict({"conv_1": nn.Conv2d(3, 16, 3)})}),
            r"keys encoder\.conv_1\.weight, .*, of a DeepLabv3 or SSDLite: 416 missing",
        ),
    ],
)
def test_a_mismatch_says_what_and_loads_nothing(build: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    path = saved(build().state_dict(), tmp_path / "a.pt")
    model = affnet_et()
    before = copy_of(model)
    with pytest.raises(ValueError, match=ET + f".*{message}"):
        load_checkpoint(model, path)
    assert_same(model.state_dict(), before)


def from_headless(model: AFFNet) -> AFFNet:
    model.reset_classifier(0)
    return model


def test_a_part_of_the_weights_is_not_enough(tmp_path: Path) -> None:
    state = tiny().state_dict()
    del state["conv_1.block.norm.bias"]
    path = saved(state, tmp_path / "a.pt")
    message = r"1 missing \(conv_1\.block\.norm\.bias\); the file holds other weights than such a network has$"
    with pytest.raises(ValueError, match=message):
        from_checkpoint(path)


def test_new_classifier_excuses_nothing_else(tmp_path: Path) -> None:
    path = saved(tiny(in_chans=1, num_classes=7).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r": 1 of another shape \(conv_1\.block\.conv\.weight: "):
        load_checkpoint(tiny(), path, new_classifier=True)


def test_from_checkpoint_refuses_other_networks(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"from_checkpoint: expected .* AFFNet, got .*a\.pt with the keys weight, bias$"
    ):
        from_checkpoint(path)
    path = saved(prefixed("encoder.", tiny().state_dict()), path)
    with pytest.raises(ValueError, match=r"keys encoder\.conv_1.*, of a DeepLabv3 or SSDLite on AFFNet$"):
        from_checkpoint(path)


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    path = saved(tiny().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r'expected a model with memory, got one on "meta"; call model\.to_empty'):
        load_checkpoint(tiny().to("meta"), path)


def test_a_model_of_two_networks_is_refused(tmp_path: Path) -> None:
    path = saved(tiny().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"expected a model of one network, got ModuleDict with several$"):
        load_checkpoint(nn.ModuleDict({"model": tiny(), "ema": tiny()}), path)


class Payload:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists()  # the payload works
    made.rmdir()
    path = saved({"model_state_dict": tiny().state_dict(), "extra": Payload(made)}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt, which names posix.mkdir, and was not loaded further, as that can run"
    ):
        read_checkpoint(path)
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(made)))
    with pytest.raises(ValueError, match="read_checkpoint: expected a PyTorch checkpoint, got"):
        read_checkpoint(tmp_path / "b.pt")
    assert not made.exists()


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut(path: Path) -> None:
    torch.save(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_safetensors(path: Path) -> None:
    pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_old_format(path: Path) -> None:
    torch.save(tiny().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_early(path: Path) -> None:
    """So short that looking for the archive's directory leads to a place before the file's start."""
    torch.save({"model_state_dict": tiny().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:10_000])


def torch_script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(2)), path)


DAMAGED = "which is cut short, damaged, or not written by torch.save$"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "write", "error", "message"),
    [
        ("a.pt", lambda path: None, OSError, "read_checkpoint: expected a file, got .*a.pt$"),
        ("a.pt", Path.mkdir, OSError, "read_checkpoint: expected a file, got .*a.pt$"),
        ("a.pt", Path.touch, ValueError, "read_checkpoint: expected a checkpoint, got .*a.pt, an empty file$"),
        ("a.pt", cut, ValueError, f"expected a PyTorch checkpoint, got .*a.pt, {DAMAGED}"),
        ("a.pt", cut_old_format, ValueError, DAMAGED),
        ("a.pt", cut_early, ValueError, DAMAGED),
        ("a.pt", written(b"\x80\x02garbage"), ValueError, DAMAGED),
        ("a.pt", written(b"PK\x03\x04" + bytes(99)), ValueError, DAMAGED),
        ("a.pt", written(b"the weights\n"), ValueError, r"a.pt, a text file that begins with 'the weights\\n'$"),
        ("a.pt", written(b"<!DOCTYPE html>"), ValueError, "a text file that begins with '<!DOCTYPE"),
        ("a.pt", torch_script, ValueError, "a TorchScript archive; save the state dict of what torch.jit.load gives$"),
        ("a.pt", lambda path: torch.save([1], path), ValueError, "expected a state dict, got .*, which holds a list$"),
        (
            "a.pt",
            lambda path: torch.save({"epoch": 3}, path),
            ValueError,
            "expected tensors, .* holds none under epoch$",
        ),
        ("a.pt", lambda path: torch.save({}, path), ValueError, "expected tensors, got "),
        (
            "a.pt",
            lambda path: torch.save(nn.Linear(2, 2), path),
            ValueError,
            "which names torch.nn.modules.linear.Linear, and was not loaded further, .* save its state dict alone$",
        ),
        (
            "a.pt",
            lambda path: torch.save(prefixed("net.", t := tiny().state_dict()) | prefixed("model.", t), path),
            ValueError,
            "expected the weights of one network, got conv_1.block.conv.weight twice$",
        ),
        (
            "a.safetensors",
            cut_safetensors,
            ValueError,
            "expected a safetensors file, got .*, which is cut short, damag",
        ),
        (
            "a.safetensors",
            written(b"the weights are here"),
            ValueError,
            "expected a safetensors file, got .*, which is",
        ),
        ("a.safetensors", Path.touch, ValueError, "a.safetensors, an empty file$"),
    ],
)
def test_files_that_are_no_checkpoint(
    name: str, write: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    write(tmp_path / name)
    with pytest.raises(error, match=message) as raised:
        from_checkpoint(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_averaged_weights_that_are_not_there(tmp_path: Path) -> None:
    path = saved(tiny().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"expected averaged weights, got .*a\.pt, none of whose weights are marked"):
        read_checkpoint(path, ema=True)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "a.safetensors").write_bytes(b"1")
    with pytest.raises(ImportError, match=r"read_checkpoint: .*a\.safetensors needs safetensors; pip install safeten"):
        read_checkpoint(tmp_path / "a.safetensors")


# convert


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    state = affnet_et(num_classes=7, norm="batch_norm_2d").state_dict()
    return saved(WRAPPINGS["timm"](state) | beside(state), tmp_path / "a.pt")


def convert(*arguments: object) -> int:
    return cli.main(["convert", *map(str, arguments)])


def test_convert_there_and_back(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    there, back = source.with_suffix(".safetensors"), source.with_name("back.pt")
    assert convert(source, there) == 0
    said = capsys.readouterr().out
    for line in (
        "network   affnet_et",
        "norm      batch_norm_2d",
        "classes   7",
        "in_chans  3",
        "tensors   479, of float32, int64",
        f"bytes     {source.stat().st_size:,} in {source}, {there.stat().st_size:,} in {there}",
    ):
        assert line in said.splitlines()
    with safe_open(there, "pt") as file:
        assert file.metadata() == {"format": "pt", "network": "affnet_et", "norm": "batch_norm_2d"}
    assert convert(there, back) == 0
    expected = read_checkpoint(source)
    for got in (read_checkpoint(there), read_checkpoint(back)):
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        assert set(got) == set(expected)
    assert back.stat().st_size < 0.6 * source.stat().st_size  # one set of weights of two
    assert sorted(path.name for path in source.parent.iterdir()) == ["a.pt", "a.safetensors", "back.pt"]


def test_convert_averaged_and_half(source: Path) -> None:
    target = source.with_suffix(".safetensors")
    assert convert(source, target, "--ema", "--half") == 0
    expected, got = read_checkpoint(source, ema=True), read_checkpoint(target)
    for key, value in expected.items():
        half = value.is_floating_point() and value.dim() > 1
        assert torch.equal(got[key], value.half() if half else value), key
    assert from_checkpoint(target).conv_1.block.conv.weight.dtype == torch.float32


def test_convert_overwrites_only_by_force(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = source.with_suffix(".safetensors")
    target.write_text("mine")
    assert convert(source, target) == 2
    assert capsys.readouterr().err == (
        f"convert: expected a new file, got {target}, which exists; --force overwrites it\n"
    )
    assert target.read_text() == "mine"
    assert convert(source, target, "--force") == 0
    assert from_checkpoint(target).num_classes == 7


def test_convert_writes_no_more_than_a_view(tmp_path: Path) -> None:
    state = affnet_et(num_classes=7).state_dict()
    state = {key: torch.cat((value[None], value[None]))[0] for key, value in state.items()}
    path = saved(state, tmp_path / "a.pt")
    assert convert(path, tmp_path / "b.pt") == 0
    assert (tmp_path / "b.pt").stat().st_size < 0.6 * path.stat().st_size


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("b.onnx", r"convert: expected a target that ends in \.safetensors, \.pt, \.pth, \.bin, got .*b\.onnx"),
        ("none/b.pt", r"convert: expected a target in a folder that exists, got .*none/b\.pt"),
    ],
)
def test_convert_refuses_targets(target: str, message: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(source, source.parent / target) == 2
    assert_one_line(capsys, message)
    assert [path.name for path in source.parent.iterdir()] == ["a.pt"]


def test_convert_refuses_other_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    assert convert(path, tmp_path / "b.pt") == 2
    assert_one_line(capsys, r"convert: expected a checkpoint of an AFFNet, got .*a\.pt with keys like weight")
    assert convert(tmp_path / "c.pt", tmp_path / "b.pt") == 2
    assert_one_line(capsys, r"read_checkpoint: expected a file, got .*c\.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def assert_one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert re.fullmatch(message + "\n", capsys.readouterr().err)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_convert_leaves_nothing_half_written(suffix: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource", reason="files have no limit of size here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        status = convert(source, source.with_name("b" + suffix))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert_one_line(capsys, r"\[Errno \d+\] File too large")
    assert [path.name for path in source.parent.iterdir()] == ["a.pt"]
