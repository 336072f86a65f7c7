"""DeepLabv3 from a checkpoint: what the file tells, what training wrote beside the weights, and what is assumed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import Tensor

from affnet_kernels.models.checkpoint import ENCODER, build, load_state, read_checkpoint, recognise
from affnet_kernels.models.deeplabv3 import DeepLabv3
from affnet_kernels.models.dense_checkpoints import training_facts

CLASSIFIER = "seg_head.classifier.block.conv.weight"
PROJECTION = "seg_head.aspp.aspp_layer.project.block.conv.weight"
SIZE, OUTPUT_STRIDE, HEAD_ACTIVATION = 512, 16, "relu"  # where a file tells nothing


class Segmenter(NamedTuple):
    """A network, and what it was trained with."""

    network: DeepLabv3  # in eval mode
    classes: list[str]  # the name of each, or its number
    size: int  # H and W of the images


def segmenter_from_checkpoint(path: str | os.PathLike[str], **options: Any) -> Segmenter:
    """The DeepLabv3 that a file's keys and shapes tell, with its weights.

    Args:
        path: as in `read_checkpoint`, of `train`'s best.pt or of the official implementation.
        options: as in `AFFNet`, and `head_activation`, as `activation` in `DeepLabv3`. They go before what training
            wrote beside the weights, and that before what is assumed otherwise: SiLU in the backbone, ReLU in the
            head, the norm that the keys tell, output stride 16.

    Raises:
        ValueError: the weights are not a DeepLabv3's on an AFFNet, or do not fit the options.
        OSError, ImportError, ValueError: as in `read_checkpoint`.
    """
    state, facts = read_checkpoint(path), training_facts(path)
    told = recognise({key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)})
    if told is None or CLASSIFIER not in state or PROJECTION not in state:
        raise ValueError(
            "segmenter_from_checkpoint: expected the weights of a DeepLabv3 on an AFFNet, got "
            f"{_kind(state)} in {os.fspath(path)}"
        )
    recipe = facts.recipe
    size, own = recipe.get("size", SIZE), recipe.get("options", {})
    trained: dict[str, Any] = {name: recipe[name] for name in ("activation", "norm", "mixer") if name in recipe}
    trained |= {name: own[name] for name in ("output_stride", "head_activation") if name in own}
    assumed = {"img_size": size, "output_stride": OUTPUT_STRIDE, "head_activation": HEAD_ACTIVATION}
    chosen: dict[str, Any] = assumed | told | trained | options
    activation = chosen.pop("head_activation")
    channels, num_classes = state[PROJECTION].shape[0], state[CLASSIFIER].shape[0]
    network = DeepLabv3(build(chosen), num_classes, aspp_channels=channels, activation=activation)
    load_state(network, state, os.fspath(path))
    classes = facts.classes or [f"class {index}" for index in range(num_classes)]
    if len(classes) != num_classes:
        raise ValueError(
            f"segmenter_from_checkpoint: expected {num_classes} names of classes, got {len(classes)} in {path}"
        )
    return Segmenter(network.eval(), classes, size)


def _kind(
    state: dict[str, Tensor],
) -> str:
    if recognise(state) is not None:
        return "those of a network for classification"
    if any(key.startswith("ssd_heads.") for key in state):
        return "those of an SSDLite"
    return f"the keys {', '.join(list(state)[:3])}"
