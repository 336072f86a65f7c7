"""Checkpoints and networks with a head for dense prediction: rebuilt from their keys, or started from a backbone's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from affnet_kernels.models.checkpoint import (
    ENCODER,
    build,
    differences,
    load_checkpoint,
    load_state,
    read_checkpoint,
    recognise,
)
from affnet_kernels.models.ssdlite import SSDLite

# The keys that tell the number of classes, and the head itself: the anchors of SSDLite's last map are four.
SSD_KEY, SSD_ANCHORS = "ssd_heads.5.loc_cls_layer.block.conv.bias", 4


class Facts(NamedTuple):
    """What this package's training keeps beside the weights."""

    classes: list[str] | None  # their names, in a dense network the background's first; None in other files
    recipe: dict[str, Any]  # of the run, as `Recipe.to_dict` gives it; empty in other files


def training_facts(path: str | os.PathLike[str]) -> Facts:
    """The names of the classes and the recipe in a checkpoint that `train` wrote; none of them in any other file.

    Call it after `read_checkpoint`, which says what is wrong with a file.
    """
    if Path(path).suffix == ".safetensors":
        return Facts(None, {})
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many types, for a file that `read_checkpoint` takes all the same, or has complained of
        return Facts(None, {})
    content = content if isinstance(content, Mapping) else {}
    classes, recipe = content.get("classes"), content.get("recipe")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return Facts(classes if named else None, dict(recipe) if isinstance(recipe, Mapping) else {})


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Start a network from a checkpoint: from all of it that fits, by what the keys say it is.

    A classification network's weights go into the encoder of a dense one, whose head stays as it is. Where the numbers
    of classes differ the network keeps its own classifier.

    Raises:
        OSError, ValueError, ImportError: as in `load_checkpoint`.
    """
    state, own = read_checkpoint(path), model.state_dict()
    encoder = getattr(model, ENCODER.rstrip("."), None)
    if isinstance(encoder, nn.Module) and recognise(state) is not None:
        load_state(encoder, state, os.fspath(path))
    else:
        load_checkpoint(model, path, new_classifier=bool(differences(own, state)))


def detector_from_checkpoint(path: str | os.PathLike[str], **options: Any) -> SSDLite:
    """The SSDLite that a file's keys and shapes tell, with its weights, in eval mode.

    Args:
        path: as in `read_checkpoint`.
        options: as in `AFFNet`, for what the file does not tell: `activation`, which is SiLU unless given;
            `norm="layer_norm"`; and `head_activation`, as `activation` in `SSDLite`. They go before what the file
            tells and what `training_facts` finds in it.

    Raises:
        ValueError: the weights are not an SSDLite's on an AFFNet, or do not fit the options.
        OSError, ImportError, ValueError: as in `read_checkpoint`.
    """
    state = read_checkpoint(path)
    told = recognise({key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)})
    if told is None or SSD_KEY not in state:
        raise ValueError(
            f"detector_from_checkpoint: expected the weights of an SSDLite on an AFFNet, got {_kind(state)} in {path}"
        )
    recipe = training_facts(path).recipe
    own = {name: recipe[name] for name in ("activation", "norm") if name in recipe}
    head = {"head_activation": recipe.get("options", {}).get("head_activation", "relu")}
    chosen: dict[str, Any] = {"img_size": 320} | told | own | head | options
    activation = chosen.pop("head_activation")
    num_classes = state[SSD_KEY].shape[0] // SSD_ANCHORS - 4
    model = SSDLite(build(chosen), num_classes, activation=activation)
    load_state(model, state, os.fspath(path))
    return model.eval()


def _kind(state: Mapping[str, Tensor]) -> str:
    if recognise(state) is not None:
        return "those of a network for classification"
    if any(key.startswith("seg_head.") for key in state):
        return "those of a DeepLabv3"
    return f"the keys {', '.join(list(state)[:3])}"
