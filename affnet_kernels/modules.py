"""The mixer as a module, and its exchange for the official one inside a model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.functional import fused_aff_mixer

PARAMETERS = ("w1", "b1", "w2", "b2")
_ACTIVATION_OF = {activation.module: name for name, activation in ACTIVATIONS.items()}
_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


class AFFMixer(nn.Module):
    """Adaptive frequency filter, a drop-in for the official `AFNO2D_channelfirst`: same parameters, same state dict.

    Args:
        channels: C of the feature maps [B, C, H, W].
        num_blocks: K, the channel blocks that the mask's perceptron keeps apart; must divide C.
        hidden_size_factor: hidden channels of a block as a multiple of its C / K channels.
        sparsity_threshold: soft-shrink threshold of the mask, >= 0.
        activation: "relu", "silu", "gelu", "tanh" or "identity".
        device, dtype: of the parameters, as in every PyTorch module.

    Raises:
        ValueError: the channels do not divide into blocks, or an option is not as above.

    Source: Huang et al., ICCV 2023, arXiv 2307.14008.
    """

    w1: nn.Parameter  # [2, K, D, Dh]
    b1: nn.Parameter  # [2, K, Dh]
    w2: nn.Parameter  # [2, K, Dh, D]
    b2: nn.Parameter  # [2, K, D]

    def __init__(
        self,
        channels: int,
        num_blocks: int = 8,
        hidden_size_factor: int = 1,
        sparsity_threshold: float = 0.01,
        activation: str = "relu",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_blocks < 1 or channels < 1 or channels % num_blocks:
            raise ValueError(f"AFFMixer: expected channels to be a multiple of num_blocks={num_blocks}, got {channels}")
        if hidden_size_factor < 1:
            raise ValueError(f"AFFMixer: expected hidden_size_factor >= 1, got {hidden_size_factor}")
        if not sparsity_threshold >= 0:
            raise ValueError(f"AFFMixer: expected sparsity_threshold >= 0, got {sparsity_threshold}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"AFFMixer: expected activation to be one of {list(ACTIVATIONS)}, got {activation!r}")
        self.sparsity_threshold = sparsity_threshold
        self.activation = activation
        size = channels // num_blocks  # D
        hidden = size * hidden_size_factor  # Dh
        shapes = ((2, num_blocks, size, hidden), (2, num_blocks, hidden), (2, num_blocks, hidden, size))
        for name, shape in zip(PARAMETERS, (*shapes, (2, num_blocks, size)), strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the official initialisation, 0.02 * randn."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        return fused_aff_mixer(
            x,
            self.w1,
            self.b1,
            self.w2,
            self.b2,
            sparsity_threshold=self.sparsity_threshold,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        _, blocks, size, hidden = self.w1.shape
        return (
            f"channels={blocks * size}, num_blocks={blocks}, hidden_size_factor={hidden // size}, "
            f"sparsity_threshold={self.sparsity_threshold}, activation={self.activation!r}"
        )


class ReplacedMixers(dict[str, nn.Module]):
    """What `replace_mixers` took out of a model: qualified name -> the original module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def undo(self) -> None:
        """Put the original modules back, with the parameters, mode and hooks that their replacements have now."""
        for name, original in self.items():
            _hand_over(self._model.get_submodule(name), original)
            self._model.set_submodule(name, original)
        self.clear()


def replace_mixers(
    model: nn.Module,
    *,
    check: bool = True,
) -> ReplacedMixers:
    """Swap every official-style mixer inside `model` for an `AFFMixer`, in place.

    An official-style mixer is a module of any class that owns exactly the parameters w1, b1, w2, b2 in the official
    shapes. The replacement takes over the very parameters (an optimizer goes on working), device, dtype, train or
    eval mode and hooks; the model's state-dict keys stay.

    Args:
        model: somebody's network; changed in place. It must not be a mixer itself.
        check: compare each mixer with its replacement on a small random input on the CPU first. AFNO, for one, has the
            same parameters and computes something else.

    Returns:
        The replaced modules by qualified name; its `undo()` puts them back.

    Raises:
        ValueError: there is no such mixer, one has an activation or option that is not supported, or one computes
            something else. The model is then unchanged.
    """
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, AFFMixer) and _has_mixer_shapes(module)
    }
    if not found:
        raise ValueError(
            f"replace_mixers: expected a model with modules that own the parameters {', '.join(PARAMETERS)} in the "
            f"shapes [2, K, D, Dh], [2, K, Dh], [2, K, Dh, D], [2, K, D], got {type(model).__name__} without any"
        )
    if "" in found:
        raise ValueError(
            f"replace_mixers: expected a model that contains mixers, got a mixer, {type(model).__name__}; "
            "make an AFFMixer and load its state dict"
        )
    replacements = {id(module): _replacement(name, module, check) for name, module in found.items()}
    replaced = ReplacedMixers(model)
    for name, module in found.items():
        _hand_over(module, replacements[id(module)])
        model.set_submodule(name, replacements[id(module)])
        replaced[name] = module
    return replaced


def _has_mixer_shapes(
    module: nn.Module,
) -> bool:
    own = dict(module.named_parameters(recurse=False))
    if set(own) != set(PARAMETERS) or own["w1"].dim() != 4:
        return False
    two, blocks, size, hidden = own["w1"].shape
    shapes = ((2, blocks, size, hidden), (2, blocks, hidden), (2, blocks, hidden, size), (2, blocks, size))
    return two == 2 and all(own[name].shape == shape for name, shape in zip(PARAMETERS, shapes, strict=True))


def _replacement(
    name: str,
    module: nn.Module,
    check: bool,
) -> AFFMixer:
    """An `AFFMixer` that computes what `module` does; its parameters are still its own."""
    _, blocks, size, hidden = module.get_parameter("w1").shape
    where = f"replace_mixers: {name} ({type(module).__name__})"
    activations = {_activation(where, child) for child in module.children()} or {"relu"}
    if len(activations) > 1:
        raise ValueError(f"{where}: expected one activation, got {sorted(activations)}")
    fraction = getattr(module, "hard_thresholding_fraction", 1)
    if fraction != 1:
        raise ValueError(f"{where}: expected hard_thresholding_fraction 1, got {fraction}")
    mixer = AFFMixer(
        blocks * size,
        blocks,
        hidden // size,
        getattr(module, "sparsity_threshold", 0.01),
        activations.pop(),
        device="meta",
    )
    if check:
        _compare(where, module, mixer)
    return mixer


def _activation(
    where: str,
    child: nn.Module,
) -> str:
    for kind, name in _ACTIVATION_OF.items():
        if isinstance(child, kind) and getattr(child, "approximate", "none") == "none":
            return name
    known = ", ".join(kind.__name__ for kind in _ACTIVATION_OF)
    raise ValueError(f"{where}: expected an activation without parameters, out of {known}, got {child}")


def _compare(
    where: str,
    module: nn.Module,
    mixer: AFFMixer,
) -> None:
    if module.w1.is_meta:
        raise ValueError(f"{where}: expected parameters with values to compare on, got meta tensors; pass check=False")
    original = copy.deepcopy(module).to("cpu", torch.float32).eval()
    ours = copy.deepcopy(mixer)
    for name in PARAMETERS:
        setattr(ours, name, getattr(original, name))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, ours.w1.shape[1] * ours.w1.shape[2], 8, 6, generator=generator)
    with torch.no_grad():
        branch = ours(x) - x
        try:
            difference = (original.forward(x) - x - branch).norm() / branch.norm()
        except Exception as error:
            raise ValueError(f"{where}: expected a mixer of [B, C, H, W], got one that fails on it: {error}") from error
    if not difference < 1e-3:
        raise ValueError(
            f"{where}: expected a module that computes the adaptive frequency filter, got one whose output differs by "
            f"{difference:.1%} of the mixer branch; with check=False it would be replaced all the same"
        )


def _hand_over(
    source: nn.Module,
    target: nn.Module,
) -> None:
    """Give `target` the parameters, mode and hooks of `source`."""
    state: dict[str, Any] = vars(source)
    for name in PARAMETERS:
        setattr(target, name, state["_parameters"][name])
    target.train(source.training)
    for hooks in _HOOKS:
        if hooks in state:
            setattr(target, hooks, state[hooks])
