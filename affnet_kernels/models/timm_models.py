"""The networks in timm's registry, by timm's conventions; importing this module needs timm."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from affnet_kernels.models.affnet import MODELS, AFFNet
from affnet_kernels.models.checkpoint import state_dicts

# The official code feeds RGB in [0, 1] without normalisation; the released recipe of AFFNet-ET resizes the shorter side
# to 288, bilinear, and crops 256.
default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": {
            "num_classes": 1000,
            "input_size": (3, 256, 256),
            "pool_size": (8, 8),
            "crop_pct": 256 / 288,
            "interpolation": "bilinear",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": "conv_1.block.conv",
            "classifier": "classifier.fc",
            "license": "mit",
            "origin_url": "https://github.com/microsoft/TokenMixers",
            "paper_name": "Adaptive Frequency Filters As Efficient Global Token Mixers",
            "paper_ids": "arXiv:2307.14008",
        }
        for name in MODELS
    }
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The weights in what timm read, without wrappers; averaged ones first, as timm takes them."""
    return max(state_dicts(state_dict), key=itemgetter(0), default=(False, state_dict))[1]


def _see_through(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Filter what timm reads from `checkpoint_path`, for which it calls no filter."""
    if not prefix:
        weights = checkpoint_filter_fn(dict(state_dict), model)
        state_dict.clear()
        state_dict.update(weights)


def _build(
    name: str,
    num_classes: int = 1000,  # 0 for no classifier
    global_pool: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> AFFNet:
    with nullcontext() if device is None else torch.device(device):
        model = MODELS[name](num_classes=num_classes or 1, **options)
    if not num_classes or global_pool is not None:
        model.reset_classifier(num_classes, global_pool)
    model.register_load_state_dict_pre_hook(_see_through)
    return model.to(dtype=dtype)


def _register(name: str) -> None:
    def entry_point(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(
            partial(_build, name), name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options
        )

    entry_point.__name__ = entry_point.__qualname__ = name
    globals()[name] = register_model(entry_point)


for _name in MODELS:
    _register(_name)
