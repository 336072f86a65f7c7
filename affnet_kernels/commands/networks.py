"""The network that a command runs: from a checkpoint, or with random weights."""

from __future__ import annotations

import argparse
from typing import Any, cast

import torch
from torch import nn

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.models import MODELS, AFFNet, create_model
from affnet_kernels.models.checkpoint import from_checkpoint, network_name, recognise
from affnet_kernels.models.layers import NORMS
from affnet_kernels.modules import AFFMixer

SEED = 0


def add_network_arguments(
    parser: argparse.ArgumentParser,
) -> None:
    """What a checkpoint does not tell, and what it does, to be checked."""
    parser.add_argument("--model", metavar="NAME", help="affnet_et, affnet_t, ...; a checkpoint tells it by itself")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="silu", help="which a checkpoint does not tell")
    parser.add_argument("--norm", choices=NORMS, help="needed for layer_norm, which has the keys of layer_norm_2d")
    parser.add_argument("--size", type=int, default=256, help="height and width that the image is brought to")


def load_network(
    options: argparse.Namespace,
) -> AFFNet:
    """The network of the checkpoint that the options name, in eval mode.

    Raises:
        ValueError: it is not the weights of the network asked for.
        OSError, ImportError, ValueError: as in `from_checkpoint`.
    """
    if options.model not in (None, *MODELS):
        raise ValueError(f"load_network: expected --model to be one of {list(MODELS)}, got {options.model!r}")
    norm = {} if options.norm is None else {"norm": options.norm}
    network = from_checkpoint(options.checkpoint, activation=options.activation, **norm)
    name = network_name(cast(dict[str, Any], recognise(network.state_dict())))
    if options.model not in (None, name):
        raise ValueError(
            f"load_network: expected the weights of {options.model}, got those of {name} in {options.checkpoint}"
        )
    if network.in_chans != 3:
        raise ValueError(f"load_network: expected a network for images of 3 channels, got one for {network.in_chans}")
    return network


def random_network(
    name: str,
    activation: str,
    norm: str,
) -> AFFNet:
    """A network with seeded weights, in eval mode, whose maps and masks vary with the image down to the last layer.

    The initial weights would not do: they leave the masks nearly zero and the deep maps nearly flat. So the masks'
    weights have scale 1/sqrt(D), and the convolutions keep the variance of what they get.

    Raises:
        ValueError: there is no network of that name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = create_model(name, activation=activation, norm=norm)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, AFFMixer):
                nn.init.normal_(module.w1, std=module.w1.shape[2] ** -0.5)
                nn.init.normal_(module.w2, std=module.w2.shape[2] ** -0.5)
    return network.eval()
