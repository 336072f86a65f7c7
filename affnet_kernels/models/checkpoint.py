"""Checkpoints of AFFNet networks, official ones and those of other training code: read, recognised, loaded."""

from __future__ import annotations

import argparse
import errno
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affnet_kernels.models.affnet import STAGES, STEM_CHANNELS, AFFNet

# Names under which training code keeps a model's state dict, as a key of the checkpoint or as a prefix of its keys.
WRAPPERS = ("model_state_dict", "state_dict", "model", "module", "_orig_mod", "network", "net")
AVERAGED_WRAPPERS = (
    "model_ema_state_dict",
    "ema_model_state_dict",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
)
# Names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put anywhere in a key.
INSERTED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
AVERAGE_COUNT = "n_averaged"  # the buffer that torch.optim.swa_utils.AveragedModel adds to its model's
CLASSIFIER, EXPANSION, ENCODER = "classifier.", "conv_1x1_exp.", "encoder."
# What depends on the number of classes, in an AFFNet, a DeepLabv3 and an SSDLite.
CLASSIFIERS = re.compile(r"classifier\.|seg_head\.classifier\.|ssd_heads\.\d+\.loc_cls_layer\.(pw_conv|block)\.")
# The channels tell the networks apart.
CHANNELS = {
    (32, 48, 64, 104, 144): "affnet_et",
    (32, 48, 96, 160, 192): "affnet_t",
    (32, 64, 128, 256, 320): "affnet",
    (64, 128, 256, 512, 640): "affnet_base",
    (64, 128, 256, 512, 768): "affnet_large",
}
SHOWN = 3  # keys of each kind that a message names


def read_checkpoint(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, with neither the wrappers nor the key prefixes that training code adds.

    Args:
        path: a file of safetensors by its suffix `.safetensors`, of `torch.save` by any other. Nothing in it is run.
        ema: take the averaged weights (EMA, SWA) of a file that has both; otherwise the raw ones are taken. A file
            with one set of weights that is not marked as averaged has no averaged ones.

    Returns:
        The tensors by key, in the file's order.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no such checkpoint, or has no averaged weights.
        ImportError: safetensors is needed and not installed.
    """
    return _read(Path(path), ema, mapped=False)


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], *, new_classifier: bool = False, ema: bool = False
) -> None:
    """Load a file's weights into a network, all of them or, where keys or shapes differ, none.

    Args:
        model: an AFFNet, DeepLabv3, SSDLite, or any module; on any device, of any float type, compiled or wrapped for
            data parallelism. The `encoder` of the dense networks takes a classification network's weights, too, of
            which it leaves out the two last layers.
        path, ema: as in `read_checkpoint`.
        new_classifier: keep the model's own classifier (in an SSDLite what predicts classes and boxes), for another
            number of classes.

    Raises:
        ValueError: keys or shapes differ; the message names the first ones, and what would fix it.
        OSError, ImportError, ValueError: as in `read_checkpoint`.
    """
    load_state(model, _read(Path(path), ema, mapped=True), os.fspath(path), new_classifier=new_classifier)


def from_checkpoint(path: str | os.PathLike[str], *, ema: bool = False, **options: Any) -> AFFNet:
    """The network that a file's keys and shapes tell, with its weights, in eval mode.

    Args:
        path, ema: as in `read_checkpoint`.
        options: as in `AFFNet`. They go before what the file tells, and say what it does not: `activation`, which is
            SiLU unless given; `norm="layer_norm"`, whose keys are those of "layer_norm_2d"; `output_stride`; the image
            size of the mixers that depend on it. With another `num_classes` the classifier is a new one, and with 0
            there is none.

    Raises:
        ValueError: the weights are not an AFFNet's, or do not fit the options.
        OSError, ImportError, ValueError: as in `read_checkpoint`.
    """
    state = _read(Path(path), ema, mapped=True)
    told = recognise(state)
    if told is None:
        raise ValueError(f"from_checkpoint: expected the weights of an AFFNet, got {_foreign(state, os.fspath(path))}")
    model = build(told | options)
    load_state(model, state, os.fspath(path), new_classifier=model.num_classes != told["num_classes"])
    return model.eval()


def build(options: Mapping[str, Any], network: type[AFFNet] = AFFNet) -> AFFNet:
    """The network with these options, of which `num_classes` may be 0."""
    model = network(**{**options, "num_classes": options["num_classes"] or 1})
    if not options["num_classes"]:
        model.reset_classifier(0)
    return model


def recognise(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The options of `AFFNet` that keys and shapes tell, `num_classes` 0 without a classifier; None for other keys."""
    try:
        channels = [state[f"{stage}.0.block.red_1x1.block.conv.weight"].shape[0] for stage in STAGES]
        hidden = state["layer_1.0.block.exp_1x1.block.conv.weight"].shape[0]
        in_chans = state["conv_1.block.conv.weight"].shape[1]
        num_classes = state[f"{CLASSIFIER}fc.weight"].shape[0] if f"{CLASSIFIER}fc.weight" in state else 0
    except (KeyError, IndexError):
        return None
    filters = {key.rpartition(".")[2]: value for key, value in state.items() if ".filter." in key}

    def count(stage: str, ending: str) -> int:
        return sum(key.startswith(f"{stage}.") and key.endswith(ending) for key in state)

    residual, mixer_block = ".block.red_1x1.block.conv.weight", ".norm1.weight"
    return {
        "channels": channels,
        "depths": [count(stage, residual if index < 2 else mixer_block) for index, stage in enumerate(STAGES)],
        "expansion": hidden // STEM_CHANNELS,
        "fusion": [f"{stage}.1.fusion.block.conv.weight" in state for stage in STAGES[2:]],
        "num_classes": num_classes,
        "in_chans": in_chans,
        "norm": "batch_norm_2d" if "layer_3.1.global_rep.0.norm1.running_mean" in state else "layer_norm_2d",
        "mixer": _mixer(filters),
    }


def network_name(options: Mapping[str, Any]) -> str:
    """The name in `MODELS` of the network with these options, or "AFFNet" for one of other channels."""
    return CHANNELS.get(tuple(options["channels"]), "AFFNet")


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str, *, new_classifier: bool = False) -> None:
    """Copy a state dict that came from `path` into a network after all of it was checked."""
    targets = {key: value for key, value in model.state_dict().items() if key != AVERAGE_COUNT}
    own = {_canonical(key)[1]: value for key, value in targets.items()}
    if len(own) < len(targets):
        raise ValueError(f"load_checkpoint: expected a model of one network, got {type(model).__name__} with several")
    if new_classifier:
        own, state = (
            {key: value for key, value in tensors.items() if not CLASSIFIERS.match(key)} for tensors in (own, state)
        )
    expected = recognise(own)
    if expected and not any(key.startswith(EXPANSION) for key in own):  # the encoder of a dense prediction network
        state = {key: value for key, value in state.items() if not key.startswith((EXPANSION, CLASSIFIER))}
    if differing := differences(own, state):
        got = recognise(state)
        raise ValueError(
            f"load_checkpoint: expected the weights of {_description(expected) or type(model).__name__}, got "
            f"{f'those of {_description(got)} in {path}' if got else _foreign(state, path)}: "
            f"{', '.join(differing)}{_remedy(expected, got) or _dense_remedy(own, state, got)}"
        )
    if any(value.is_meta for value in own.values()):
        raise ValueError('load_checkpoint: expected a model with memory, got one on "meta"; call model.to_empty first')
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(state[key])


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """How a state dict differs from the one that a network has: at most one phrase each on keys and shapes."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key}: {list(state[key].shape)} for {list(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]


def _read(path: Path, ema: bool, mapped: bool) -> dict[str, Tensor]:
    """`read_checkpoint`; `mapped` for tensors that are gone before anyone could overwrite the file under them."""
    if not path.is_file():
        raise FileNotFoundError(f"read_checkpoint: expected a file, got {path}")
    if not path.stat().st_size:
        raise ValueError(f"read_checkpoint: expected a checkpoint, got {path}, an empty file")
    content = _safetensors_content(path, mapped) if path.suffix == ".safetensors" else _torch_content(path, mapped)
    if not isinstance(content, Mapping):
        raise ValueError(f"read_checkpoint: expected a state dict, got {path}, which holds a {type(content).__name__}")
    found = list(state_dicts(content))
    if not found:
        raise ValueError(f"read_checkpoint: expected tensors, got {path}, which holds none under {_some(content)}")
    averaged = [state for is_averaged, state in found if is_averaged]
    if ema and not averaged:
        raise ValueError(
            f"read_checkpoint: expected averaged weights, got {path}, none of whose weights are marked as averaged"
            "; read it without ema"
        )
    raw = [state for is_averaged, state in found if not is_averaged]
    return (averaged if ema else raw or averaged)[0]


def _torch_content(path: Path, mapped: bool) -> Any:
    try:
        # timm's training script keeps its arguments beside the weights; a Namespace runs nothing when it is loaded.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # what they warn of ends in an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except Exception as error:  # of many types: UnpicklingError, RuntimeError, EOFError, KeyError
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # a damaged file can name a place before its start
            raise
        raise ValueError(
            f"read_checkpoint: expected a PyTorch checkpoint, got {path}, {_reason(path, error)}"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(40)
    if "TorchScript" in str(error):
        return "a TorchScript archive; save the state dict of what torch.jit.load gives"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"which names {found[1]}, and was not loaded further, as that can run code; if you trust where it comes "
            "from, save its state dict alone"
        )
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return f"a text file that begins with {start.decode()!r}"
    return "which is cut short, damaged, or not written by torch.save"


def _safetensors_content(path: Path, mapped: bool) -> dict[str, Tensor]:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"read_checkpoint: {path} needs safetensors; pip install safetensors") from error
    try:
        return safetensors.torch.load_file(path) if mapped else safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"read_checkpoint: expected a safetensors file, got {path}, which is cut short, damaged, or none: {error}"
        ) from error


def state_dicts(content: Mapping[Any, Any], averaged: bool = False) -> Iterator[tuple[bool, dict[str, Tensor]]]:
    """The state dicts under known wrappers, each with whether it is averaged; or the mapping itself as such."""
    wrappers = [name for name in (*WRAPPERS, *AVERAGED_WRAPPERS) if isinstance(content.get(name), Mapping)]
    for name in wrappers:
        yield from state_dicts(content[name], averaged or name in AVERAGED_WRAPPERS)
    if wrappers:
        return
    states: dict[bool, dict[str, Tensor]] = {}
    for key, value in content.items():
        if isinstance(value, Tensor) and key != AVERAGE_COUNT:
            is_averaged, name = _canonical(str(key))
            state = states.setdefault(averaged or is_averaged or AVERAGE_COUNT in content, {})
            if name in state:
                raise ValueError(f"read_checkpoint: expected the weights of one network, got {name} twice")
            state[name] = value
    yield from states.items()


def _canonical(key: str) -> tuple[bool, str]:
    """A key without what training code added to it, and whether that says that the weights are averaged."""
    names, averaged = key.split("."), False
    while len(names) > 1 and names[0] in (*WRAPPERS, *AVERAGED_WRAPPERS):
        averaged |= names.pop(0) in AVERAGED_WRAPPERS
    return averaged, ".".join(name for name in names if name not in INSERTED)


def _mixer(
    filters: Mapping[str, Tensor],  # the weights of the token mixers, by the last part of their keys
) -> str:
    if "qkv" in filters:
        return "attention"
    if "kernel" in filters:
        return "large-kernel"
    return "mlp" if "w1" in filters and filters["w1"].dim() == 2 else "fused"


def _some(names: Any) -> str:
    """The first few of some names."""
    names = [str(name) for name in names]
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _foreign(state: Mapping[str, Tensor], path: str) -> str:
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    told = recognise(encoder)
    hint = f", of a DeepLabv3 or SSDLite{f' on {network_name(told)}' if told else ''}" if encoder else ""
    return f"{path} with the keys {_some(state)}{hint}"


def _description(options: Mapping[str, Any] | None) -> str:
    if options is None:
        return ""
    mixer = "" if options["mixer"] == "fused" else f", {options['mixer']} mixers"
    classes = f"{options['num_classes']} classes" if options["num_classes"] else "no classifier"
    return f"{network_name(options)} ({options['norm']}, {classes}, in_chans={options['in_chans']}{mixer})"


def _remedy(expected: Mapping[str, Any] | None, got: Mapping[str, Any] | None) -> str:
    """What would make the network fit the checkpoint, where both are AFFNets."""
    if expected is None or got is None:
        return ""
    differing = [name for name in got if got[name] != expected[name]]
    if not differing:
        return "; the file holds other weights than such a network has"
    other_classes = differing == ["num_classes"]
    if other_classes and not got["num_classes"]:
        return "; new_classifier=True keeps the network's own classifier"
    options = [f"{name}={got[name]!r}" for name in differing if name in ("num_classes", "in_chans", "norm", "mixer")]
    fitting = network_name(got) + (f" with {', '.join(options)}" if options else "")
    own = ", or keep the network's own classifier by new_classifier=True" if other_classes else ""
    return f"; build {fitting}, as from_checkpoint does{own}"


def _dense_remedy(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], classification: Mapping[str, Any] | None
) -> str:
    """What would make a dense prediction network fit the checkpoint."""
    if not any(key.startswith(ENCODER) for key in own):
        return ""
    if classification is not None:
        return "; load_checkpoint(model.encoder, ...) loads them into the encoder, and the head stays as it is"
    others = ({key: value for key, value in tensors.items() if not CLASSIFIERS.match(key)} for tensors in (own, state))
    return "" if differences(*others) else "; new_classifier=True keeps the network's own classifier"
