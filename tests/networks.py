"""The official networks' weights, images and logits, which `tests/data` holds or seeds reproduce."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers import DATA

PUBLISHED = ("affnet_et", "affnet_t", "affnet")


def official_state_dict(model: str, norm: str) -> dict[str, list[int]]:
    """The keys of the official checkpoint format, in order, with their shapes."""
    return json.loads((DATA / "state_dict" / f"{model}.{norm}.json").read_text())


def seeded_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the stored logits belong to, for the keys of `model`."""
    generator = np.random.default_rng(7)

    def draw(key: str, like: Tensor) -> Tensor:
        shape, last = tuple(like.shape), key.rpartition(".")[2]
        if last == "num_batches_tracked":
            return torch.zeros_like(like)
        if last in ("running_mean", "bias", "b1", "b2"):
            values = 0.1 * generator.standard_normal(shape)
        elif len(shape) == 1:
            values = generator.uniform(0.5, 1.5, shape)
        elif last in ("w1", "w2"):
            values = 0.25 * generator.standard_normal(shape) / np.sqrt(shape[2])
        else:
            values = generator.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
        return torch.from_numpy(values).to(like.dtype)

    state = model.state_dict()
    return {key: draw(key, state[key]) for key in sorted(state)}


@cache
def images() -> Tensor:  # [2, 3, 256, 256]
    """The images that the stored logits belong to."""
    return torch.from_numpy(np.random.default_rng(8).standard_normal((2, 3, 256, 256))).float()


def official_logits(model: str, activation: str) -> Tensor:  # [2, 1000]
    """The logits of the official network with the norm "layer_norm_2d"."""
    with np.load(DATA / "model_logits.npz") as arrays:
        return torch.from_numpy(arrays[f"{model}/layer_norm_2d/{activation}"])


def official_dense_outputs(kind: str, model: str) -> tuple[Tensor, ...]:
    """Outputs of the official dense networks, SiLU in the backbone and ReLU in the head, of which some are stored.

    Of "deeplabv3" the logits [2, 21, 8, 8] at every 36th pixel from 3; of "ssdlite" the scores [2, 22, 81] and the
    offsets [2, 22, 4] of every 97th anchor.
    """
    with np.load(DATA / "dense_outputs.npz") as arrays:
        return tuple(torch.from_numpy(arrays[key]) for key in arrays if key.split("/")[:2] == [kind, model])


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in eval mode, with running statistics of its own maps and norms that are not the identity."""
    generator = torch.Generator().manual_seed(9)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(norm.bias, std=0.1, generator=generator)
    with torch.no_grad():
        model.train()(x)
    return model.eval()
