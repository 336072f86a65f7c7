"""The mixer as a module."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from affnet_kernels.activations import ACTIVATIONS, activation_named
from affnet_kernels.backends import BACKENDS
from affnet_kernels.functional import fused_aff_mixer

PARAMETERS = ("w1", "b1", "w2", "b2")
HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)  # where a module keeps its hooks


class AFFMixer(nn.Module):
    """Adaptive frequency filter, a drop-in for the official `AFNO2D_channelfirst`: same parameters, same state dict.

    Args:
        channels: C of the feature maps [B, C, H, W].
        num_blocks: K, the number of channel blocks, each with a perceptron of its own; must divide C.
        hidden_size_factor: hidden channels of a block as a multiple of its C / K channels.
        sparsity_threshold: soft-shrink threshold of the mask, >= 0.
        activation: "relu", "silu", "gelu", "tanh" or "identity".
        backend: the backend to insist on, as in `fused_aff_mixer`; None chooses one for each call.
        device, dtype: of the parameters, as in every PyTorch module.

    The official attributes are there under their official names: `hidden_size` (C), `num_blocks`, `block_size` (C / K),
    `hidden_size_factor`, `sparsity_threshold`, `scale`, and the activations of the real and imaginary parts, `act` and
    `act2`. Assigning other activations to `act` and `act2` changes what the mixer computes, but the fused operator does
    not call these modules: hooks on them do not run.

    Raises:
        ValueError: the channels do not divide into blocks, or an option is not as above.

    Source: Huang et al., ICCV 2023, arXiv 2307.14008.
    """

    w1: nn.Parameter  # [2, K, D, Dh]
    b1: nn.Parameter  # [2, K, Dh]
    w2: nn.Parameter  # [2, K, Dh, D]
    b2: nn.Parameter  # [2, K, D]

    __jit_unused_properties__ = ("activation",)  # torch.jit.trace would otherwise compile the property

    def __init__(
        self,
        channels: int,
        num_blocks: int = 8,
        hidden_size_factor: int = 1,
        sparsity_threshold: float = 0.01,
        activation: str = "relu",
        *,
        backend: str | None = None,
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
        if backend is not None and backend not in (names := [known.NAME for known in BACKENDS]):
            raise ValueError(f"AFFMixer: expected backend to be None or one of {names}, got {backend!r}")
        self.hidden_size = channels  # C
        self.num_blocks = num_blocks  # K
        self.block_size = channels // num_blocks  # D
        self.hidden_size_factor = hidden_size_factor
        self.scale = 0.02
        self.sparsity_threshold = float(sparsity_threshold)
        self.backend = backend
        hidden = self.block_size * hidden_size_factor  # Dh
        shapes = parameter_shapes(num_blocks, self.block_size, hidden)
        for name, shape in zip(PARAMETERS, shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the official initialisation, `scale` * randn."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=self.scale)

    @property
    def activation(self) -> str:
        """The name of the activation that `act` and `act2` are; assigning a name replaces both."""
        act, act2 = self._modules["act"], self._modules["act2"]  # attribute access takes twice as long
        name = activation_of(act)
        if name is None or name != activation_of(act2):
            known = ", ".join(activation.module.__name__ for activation in ACTIVATIONS.values())
            raise ValueError(f"AFFMixer: expected act and act2 to be one of {known}, got {act} and {act2}")
        return name

    @activation.setter
    def activation(self, name: str) -> None:
        kind = activation_named(name).module
        self.act, self.act2 = kind(), kind()

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
        spatial_size: Any = None,
    ) -> Tensor:  # [B, C, H, W]
        """Mix the tokens of `x`; `spatial_size` is accepted and ignored, as by the official mixer."""
        return fused_aff_mixer(
            x,
            self.w1,
            self.b1,
            self.w2,
            self.b2,
            sparsity_threshold=self.sparsity_threshold,
            activation=self.activation,
            backend=self.backend,
        )

    def profile_module(
        self,
        input: Tensor,  # [B, C, H, W]
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, float, float]:
        """What the official profiler asks of every layer: its output, parameters and multiply-adds (MACs).

        Counted by the official conventions, so that a network adds up to the published figures (AFFNet-ET at 256x256:
        1.428 M parameters, 361.9 M MACs). With N = H * W:

            params = 4 K D Dh                                the weights, without the biases
            macs   = B N (4 K D Dh + 5 C floor(ln N))        perceptron, and 5 C floor(ln N) per token for both FFTs

        A complex product takes four real multiplications, so the perceptron takes 8 K D Dh for each of about N / 2
        frequencies. The input is returned as it is: profiling only needs the output's shape, which is the same.
        """
        batch, channels, height, width = input.shape
        tokens = height * width  # N
        hidden = self.block_size * self.hidden_size_factor  # Dh
        params = 4 * self.num_blocks * self.block_size * hidden
        transforms = 5 * channels * int(math.log(tokens))
        return input, params, batch * tokens * (params + transforms)

    def extra_repr(self) -> str:
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        return (
            f"channels={self.hidden_size}, num_blocks={self.num_blocks}, "
            f"hidden_size_factor={self.hidden_size_factor}, sparsity_threshold={self.sparsity_threshold}, "
            f"activation={self.activation!r}{backend}"
        )


def parameter_shapes(
    blocks: int,  # K
    size: int,  # D
    hidden: int,  # Dh
) -> tuple[tuple[int, ...], ...]:
    """The shapes of w1, b1, w2 and b2."""
    return (2, blocks, size, hidden), (2, blocks, hidden), (2, blocks, hidden, size), (2, blocks, size)


_NAMES: dict[type, str] = {activation.module: name for name, activation in ACTIVATIONS.items()}


def activation_of(
    module: nn.Module | None,
) -> str | None:
    """The name of the activation that `module` computes, by its class; None if it is not a supported one."""
    name = _NAMES.get(type(module)) or next((name for kind, name in _NAMES.items() if isinstance(module, kind)), None)
    return None if name == "gelu" and cast(nn.GELU, module).approximate != "none" else name
