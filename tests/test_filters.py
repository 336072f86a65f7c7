"""The mixer as a circular convolution with kernels computed from its input: the paper's theorem."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from affnet_kernels import AFFMixer
from affnet_kernels.backends import reference
from affnet_kernels.models import affnet_et
from affnet_kernels.models.filters import dynamic_kernels, filters_of, mixers_of, weights_at
from tests.helpers import FORWARD_BOUND, SHAPES, THRESHOLD, Shape, make_inputs, relative_error

BOUND = FORWARD_BOUND[torch.float64]
NAMES = (
    "one pixel: DC only",
    "a row",
    "a column",
    "two by two: DC and Nyquist only",
    "one channel a block",
    "odd both",
    "odd height",
    "odd width",
    "224 pixels, 7x7",
    "shipped, D=18",
    "rectangle",
    "hidden twice the block",
)


def circular_convolution(x: Tensor, kernels: Tensor) -> Tensor:  # each [B, C, H, W]
    """Sum over m of k[m] x[p - m], by rolling the map: no FFT."""
    height, width = x.shape[-2:]
    return sum(
        kernels[..., row, column, None, None] * x.roll((row, column), (-2, -1))
        for row in range(height)
        for column in range(width)
    )


def branch(tensors: tuple[Tensor, ...], activation: str) -> Tensor:
    return reference.mixer(tensors[0], tensors[1:], THRESHOLD, activation) - tensors[0]


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mixer_is_a_circular_convolution(name: str, activation: str) -> None:
    tensors = make_inputs(SHAPES[name], torch.float64)
    kernels = dynamic_kernels(*tensors, THRESHOLD, activation)
    assert kernels.shape == tensors[0].shape
    assert relative_error(circular_convolution(tensors[0], kernels), branch(tensors, activation)) <= BOUND


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_the_inverse_of_the_mask_of_the_docstring(name: str) -> None:
    tensors = make_inputs(SHAPES[name], torch.float64)
    x, parameters = tensors[0], tensors[1:]
    height, width = x.shape[-2:]
    parts, _ = reference.mask(reference.spectrum(x, parameters[0].shape[1]), parameters, THRESHOLD, "relu")
    half = torch.complex(*parts).flatten(1, 2)
    full = torch.empty(x.shape, dtype=torch.complex128)
    for u in range(height):
        for v in range(width):
            if v in (0, width / 2):
                full[..., u, v] = (half[..., u, v] + half[..., -u % height, v].conj()) / 2
            else:
                full[..., u, v] = half[..., u, v] if v < width / 2 else half[..., -u % height, width - v].conj()
    kernels = torch.fft.ifft2(full)
    assert kernels.imag.abs().max() <= BOUND * kernels.real.abs().max()
    assert relative_error(dynamic_kernels(*tensors, THRESHOLD, "relu"), kernels.real) <= BOUND


def test_the_mask_is_not_hermitian_by_itself() -> None:
    """Else the Hermitian part of its DC and Nyquist columns would be an idle refinement."""
    tensors = make_inputs(SHAPES["shipped, D=18"], torch.float64)
    (real, _), _ = reference.mask(reference.spectrum(tensors[0], 8), tensors[1:], THRESHOLD, "relu")
    for column in (0, -1):
        values = real[..., column]
        assert (values - values.roll(-1, -1).flip(-1)).norm() > 0.1 * values.norm()


@pytest.mark.parametrize("name", ["odd height", "a row", "rectangle"])
def test_weights_at_a_pixel_sum_the_map_to_the_branch_there(name: str) -> None:
    tensors = make_inputs(SHAPES[name], torch.float64)
    kernels = dynamic_kernels(*tensors, THRESHOLD, "silu")
    height, width = kernels.shape[-2:]
    for row, column in ((0, 0), (height - 1, width // 3), (height // 2, width - 1)):
        summed = (weights_at(kernels, row, column) * tensors[0]).sum((-2, -1))
        assert relative_error(summed, branch(tensors, "silu")[..., row, column]) <= BOUND


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (4, 0), (0, 5)])
def test_a_pixel_outside_the_map(row: int, column: int) -> None:
    with pytest.raises(ValueError, match=rf"^weights_at: expected a pixel of the 4 x 5 map, got {row},{column}$"):
        weights_at(torch.zeros(4, 5), row, column)


def test_kernels_come_from_the_input() -> None:
    x, *parameters = make_inputs(Shape(2, 8, 6, 6, 2), torch.float64)
    kernels = dynamic_kernels(x, *parameters)
    assert relative_error(kernels[0], kernels[1]) > 0.5
    assert not torch.equal(dynamic_kernels(2 * x, *parameters), kernels)


def test_half_precision_is_computed_in_float32() -> None:
    x, *parameters = make_inputs(Shape(1, 8, 6, 6, 2), torch.bfloat16)
    kernels = dynamic_kernels(x, *parameters)
    assert kernels.dtype == torch.float32
    wide = dynamic_kernels(x.double(), *(p.double() for p in parameters))
    assert relative_error(kernels, wide) <= FORWARD_BOUND[torch.float32]


def test_filters_of_a_network() -> None:
    torch.manual_seed(0)
    network = affnet_et(num_classes=4).double().eval()
    for mixer in mixers_of(network).values():
        mixer.w1.data /= 0.02 * mixer.block_size**0.5
        mixer.w2.data /= 0.02 * mixer.block_size**0.5
    layers = ["layer_4.1.global_rep.2.filter", "layer_5.1.global_rep.0.filter"]
    outputs: dict[str, Tensor] = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _, inputs, output, layer=layer: outputs.update({layer: output - inputs[0]})
        )
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    found = filters_of(network, images, layers)
    assert list(found) == layers
    assert found[layers[0]].x.shape == (2, 104, 4, 6)
    for layer, seen in found.items():
        assert relative_error(circular_convolution(seen.x, seen.kernels), outputs[layer]) <= BOUND
        product = torch.fft.ifft2(seen.mask * seen.spectrum, norm="ortho")
        assert relative_error(product.real, outputs[layer]) <= BOUND
        assert product.imag.abs().max() <= BOUND * product.real.abs().max()
    assert not any(mixer._forward_pre_hooks for mixer in mixers_of(network).values())


def test_an_unknown_layer_lists_the_layers() -> None:
    mixers = nn.ModuleDict({"one": AFFMixer(8), "two": AFFMixer(8)})
    with pytest.raises(ValueError, match=r"^filters_of: expected layers among one, two, got 'three'$"):
        filters_of(mixers, torch.zeros(1, 8, 4, 4), ["three"])


def test_a_network_without_filters() -> None:
    with pytest.raises(ValueError, match=r"^mixers_of: expected a network with AFFMixer layers, got Linear without$"):
        mixers_of(nn.Linear(2, 2))
