"""What the filter does to a given input: its spectrum, its mask, and the convolution kernels that it amounts to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from affnet_kernels.backends import reference
from affnet_kernels.modules import AFFMixer
from affnet_kernels.spec import Parameters, compute_dtype


class Filter(NamedTuple):
    """A mixer at work on a batch, all on the full plane of frequencies."""

    x: Tensor  # [B, C, H, W], its input
    spectrum: Tensor  # [B, C, H, W] complex, orthonormal
    mask: Tensor  # [B, C, H, W] complex, as it acts: see `dynamic_kernels`
    kernels: Tensor  # [B, C, H, W]


@torch.no_grad()
def dynamic_kernels(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float = 0.01,
    activation: str = "relu",
) -> Tensor:  # [B, C, H, W]
    """The kernels k, as large as the map and different for every image and channel, that the mixer convolves x with.

    With indices modulo H and W, the mixer's output is

        y[p] = x[p] + sum over q of k[p - q] x[q]

    The mixer multiplies the half spectrum X by the mask M, and its two-step inverse reads the columns v = 0 and, where
    W is even, v = W / 2 through the real inverse along W, which takes the real part of their inverse along H. X there
    equals its own mirror image, X[u, v] = conj(X[-u, v]), so that the real part leaves only the Hermitian part of M.
    Hence the mask acts as this one on the full plane of frequencies (u, v):

        M'[u, v] = (M[u, v] + conj(M[-u, v])) / 2    where v = 0 or v = W / 2
        M'[u, v] = M[u, v]                           where 0 < v < W / 2
        M'[u, v] = conj(M[-u, -v])                   where v > W / 2

    M' is Hermitian, so k = ifft2(M') is real, and by the convolution theorem it is the kernel. The two-step inverse of
    M itself does all of this at once.

    Args:
        x: the mixer's input, of any float type.
        w1, b1, w2, b2: its parameters.
        sparsity_threshold: soft-shrink threshold of the mask.
        activation: "relu", "silu", "gelu", "tanh" or "identity".

    Returns:
        The kernels in the mixer's compute type: float64 for float64, else float32. Index 0, 0 is the centre.

    Raises:
        ValueError: the activation is not one of these.
    """
    wide = x.to(compute_dtype(x.dtype))
    X = reference.spectrum(wide, w1.shape[1])
    M, _ = reference.mask(X, Parameters(w1, b1, w2, b2), sparsity_threshold, activation)
    height, width = x.shape[-2:]
    return reference.inverse_spectrum(M, width) / (height * width) ** 0.5


def weights_at(
    kernels: Tensor,  # [..., H, W]
    row: int,
    column: int,
) -> Tensor:  # [..., H, W]
    """The weights k[p - q] with which the pixel p = (row, column) of the mixer's branch sums the map's pixels q.

    Raises:
        ValueError: the pixel is outside the map.
    """
    height, width = kernels.shape[-2:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"weights_at: expected a pixel of the {height} x {width} map, got {row},{column}")
    return kernels.flip(-2, -1).roll((row + 1, column + 1), (-2, -1))


def mixers_of(
    network: nn.Module,
) -> dict[str, AFFMixer]:
    """The adaptive frequency filters of a network, by name, in their order.

    Raises:
        ValueError: it has none.
    """
    mixers = {name: module for name, module in network.named_modules() if isinstance(module, AFFMixer)}
    if not mixers:
        raise ValueError(f"mixers_of: expected a network with AFFMixer layers, got {type(network).__name__} without")
    return mixers


@torch.no_grad()
def filters_of(
    network: nn.Module,
    images: Tensor,  # [B, 3, H, W]
    layers: list[str],
) -> dict[str, Filter]:
    """Run a network on images, and see what the named filters do there.

    Args:
        network: in the mode in which it is to be seen, which is eval mode as a rule.
        images: as the network takes them.
        layers: names of AFFMixers, as in `mixers_of`.

    Returns:
        What each layer's filter is for these images, under the layer's name.

    Raises:
        ValueError: a name is not that of an AFFMixer of the network.
    """
    mixers = mixers_of(network)
    for layer in layers:
        if layer not in mixers:
            raise ValueError(f"filters_of: expected layers among {', '.join(mixers)}, got {layer!r}")
    inputs: dict[str, Tensor] = {}
    hooks = [
        mixers[layer].register_forward_pre_hook(lambda _, arguments, layer=layer: inputs.update({layer: arguments[0]}))
        for layer in layers
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: _filter(mixers[layer], inputs[layer]) for layer in layers}


def _filter(
    mixer: AFFMixer,
    x: Tensor,  # [B, C, H, W]
) -> Filter:
    kernels = dynamic_kernels(x, mixer.w1, mixer.b1, mixer.w2, mixer.b2, mixer.sparsity_threshold, mixer.activation)
    spectrum = torch.fft.fft2(x.to(kernels.dtype), norm="ortho")
    return Filter(x, spectrum, torch.fft.fft2(kernels), kernels)
