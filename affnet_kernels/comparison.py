"""Whether a module computes the adaptive frequency filter, decided by running its code on tensors made for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from affnet_kernels.backends import reference
from affnet_kernels.modules import HOOKS, PARAMETERS, AFFMixer, parameter_shapes
from affnet_kernels.spec import Parameters

TOLERANCE = 1e-3  # relative L2, of the branch y - x
WIDE = (6, 16)  # some variants of the filter drop columns of maps that are wider than high
SQUARE = (8, 8)

Formula = Callable[[Tensor, Parameters, float, str], Tensor]


def difference(
    module: nn.Module,
    mixer: AFFMixer,
) -> str:
    """What `module` computes instead of what `mixer` does, in words; "" if they agree.

    Only the code of the module's class runs, without hooks, on the CPU and in float32. It runs on a shell, which keeps
    what is assigned during the run, and on random parameters, chosen so that the branch is not zero.
    """
    with plain_defaults():
        parameters, x = _sample(mixer, WIDE)
        got = _run(module, parameters, x)
        expected = _expected(reference.mixer, mixer, parameters, x)
        if isinstance(got, Tensor) and _agree(got, expected, x):
            return ""
        if known := _known_variant(module, mixer):
            return known
    if isinstance(got, str):
        return f"one that {got}"
    if not got.isfinite().all():
        return "one that returns NaN or infinity for finite parameters and input"
    share = (got - expected).norm() / (expected - x).norm()
    return f"one whose output differs by {share:.1%} of the mixer branch"


def _known_variant(
    module: nn.Module,
    mixer: AFFMixer,
) -> str:
    """The other operator, or other layout, that `module` turns out to be; "" if none that is known."""
    parameters, x = _sample(mixer, SQUARE)
    for layout, there, back in (("", (0, 1, 2, 3), (0, 1, 2, 3)), ("channels-last ", (0, 2, 3, 1), (0, 3, 1, 2))):
        got = _run(module, parameters, x.permute(there).contiguous())
        if not isinstance(got, Tensor):
            continue
        got = got.permute(back)
        if _agree(got, _expected(_afno, mixer, parameters, x), x):
            return f"{layout}AFNO, which returns soft_shrink(MLP(X)) and not its product with X; it stays as it is"
        if layout and _agree(got, _expected(reference.mixer, mixer, parameters, x), x):
            return "its channels-last form, [B, H, W, C]; AFFMixer takes [B, C, H, W], so it stays as it is"
    return ""


def _afno(
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
    activation: str,
) -> Tensor:  # [B, C, H, W]
    """The Adaptive Fourier Neural Operator's mixer: the perceptron's output is the new spectrum."""
    Y, _ = reference.mask(reference.spectrum(x, parameters.w1.shape[1]), parameters, sparsity_threshold, activation)
    return reference.inverse_spectrum(Y, x.shape[-1]) + x


def _sample(
    mixer: AFFMixer,
    size: tuple[int, int],  # H, W
) -> tuple[Parameters, Tensor]:
    """Parameters and x [2, C, H, W] for which the mask is not zero whatever the threshold."""
    generator = torch.Generator("cpu").manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32)

    blocks, block, hidden = mixer.num_blocks, mixer.block_size, mixer.block_size * mixer.hidden_size_factor
    w1, b1, w2, b2 = (randn(*shape) for shape in parameter_shapes(blocks, block, hidden))
    reach = 1 + 4 * mixer.sparsity_threshold
    x = randn(2, mixer.hidden_size, *size)
    return Parameters(w1 / block**0.5, 0.1 * b1, reach * w2 / hidden**0.5, reach * b2), x


def _expected(
    formula: Formula,
    mixer: AFFMixer,
    parameters: Parameters,
    x: Tensor,
) -> Tensor:
    return formula(x, parameters, mixer.sparsity_threshold, mixer.activation)


def _agree(
    got: Tensor,
    expected: Tensor,
    x: Tensor,
) -> bool:
    """Whether two outputs are the same up to rounding; False for NaN."""
    error, branch = (got - expected).norm(), (expected - x).norm()
    return bool(error <= TOLERANCE * branch)


def _run(
    module: nn.Module,
    parameters: Parameters,
    x: Tensor,
) -> Tensor | str:
    """What the forward of `module`'s class returns for these parameters, or what went wrong, in words."""
    shell = _shell(module)
    for name, tensor in zip(PARAMETERS, parameters, strict=True):
        shell._parameters[name] = nn.Parameter(tensor.clone(), requires_grad=False)
    try:
        y = type(module).forward(shell, x.clone())
    except Exception as error:
        return f"fails on x of shape {list(x.shape)}: {error}"
    if not isinstance(y, Tensor) or y.shape != x.shape:
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        return f"returns {got} for x of shape {list(x.shape)}"
    return y.to("cpu", torch.float32)


def _shell(
    module: nn.Module,
) -> nn.Module:
    """A module of the same class and attributes, in eval mode, without hooks and with registries of its own."""
    shell: nn.Module = object.__new__(type(module))
    fresh = vars(nn.Module())
    state: dict[str, Any] = dict(vars(module)) | {name: fresh[name] for name in HOOKS}
    state.pop("forward", None)
    state["training"] = False
    state["_parameters"], state["_buffers"] = dict(module._parameters), dict(module._buffers)
    state["_modules"] = {name: None if child is None else _shell(child) for name, child in module._modules.items()}
    vars(shell).update(state)
    return shell


@contextmanager
def plain_defaults() -> Iterator[None]:
    """PyTorch's own defaults in place of the user's: dtype, device, autocast, gradients, real tensors."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with unset_fake_temporarily(), torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
