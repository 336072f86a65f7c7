"""Who is measured: the fused mixer, its plain forms, a copy, and the global mixers it stands in for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer
from affnet_kernels.backends import BACKENDS, reference
from benchmarks.cases import Case
from benchmarks.inputs import dense_parameters, mixer_parameters

THRESHOLD = 0.01
MAX_PARAMETER_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}

Function = Callable[..., Tensor]  # (x, *parameters) -> y


class Unavailable(Exception):
    """This provider cannot do this case; the message says why."""


class Provider(NamedTuple):
    name: str
    about: str
    parameters: Callable[[Case, str], tuple[Tensor, ...]]  # (case, device)
    function: Callable[[Case, str], Function]  # the operator for a case on a device, or Unavailable
    definition: Function  # the same in float64
    graphed: bool = False  # replayed as a CUDA graph


def eager(x: Tensor, *parameters: Tensor) -> Tensor:
    """The reference mixer under autograd."""
    return reference.mixer(x, parameters, THRESHOLD, "relu")


def fused(backend: str) -> Provider:
    def function(case: Case, device: str) -> Function:
        w1 = torch.empty(2, case.blocks, case.channels // case.blocks, case.channels // case.blocks)
        x = torch.empty(0, dtype=getattr(torch, case.dtype), device=device)
        x = x.expand(case.batch, case.channels, case.height, 0)
        spec = MixerSpec.of(x, w1)._replace(width=case.width)
        if reasons := available_backends(spec)[backend]:
            raise Unavailable("; ".join(reasons))
        if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
            raise Unavailable("interpreted Triton is not timed")
        return lambda x, *parameters: fused_aff_mixer(x, *parameters, sparsity_threshold=THRESHOLD, backend=backend)

    return Provider(backend, f"the fused mixer, backend {backend!r}", mixer_parameters, function, eager)


def compiled(name: str, mode: str | None) -> Provider:
    def function(case: Case, device: str) -> Function:
        torch._dynamo.reset()
        return torch.compile(eager, mode=mode, dynamic=False)

    return Provider(name, f"torch.compile of eager, mode {mode or 'default'}", mixer_parameters, function, eager)


def clone(x: Tensor) -> Tensor:
    """The same bytes in and out, and nothing else."""
    return x.clone()


def attention(
    x: Tensor,  # [B, C, H, W]
    qkv: Tensor,  # [3C, C]
    out: Tensor,  # [C, C]
) -> Tensor:  # [B, C, H, W]
    """Softmax self-attention over the tokens, with its projections and the residual."""
    batch, channels, height, width = x.shape
    heads = head_count(channels)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = F.linear(tokens, qkv).view(batch, -1, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(mixed, out).transpose(1, 2).reshape(batch, channels, height, width) + x


def head_count(channels: int) -> int:
    """Heads of 32 channels, or the nearest size that divides, multiples of 8 first: flash kernels pad the others."""
    sizes = [size for size in range(16, 65) if channels % size == 0] or [channels]
    best = min(sizes, key=lambda size: (size % 8 != 0, abs(size - 32)))
    return channels // best


def depthwise(
    x: Tensor,  # [B, C, H, W]
    kernel: Tensor,  # [C, 1, kernel height, kernel width]
) -> Tensor:  # [B, C, H, W]
    """A static depthwise convolution as large as the map, zero padding, with the residual."""
    padding = kernel.shape[2] // 2, kernel.shape[3] // 2
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1]) + x


def token_mlp(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [N, N]
    w2: Tensor,  # [N, N]
) -> Tensor:  # [B, C, H, W]
    """MLP-Mixer's token mixing, as many hidden units as tokens, with the residual."""
    return F.linear(F.gelu(F.linear(x.flatten(2), w1)), w2).view_as(x) + x


def _attention_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    return dense_parameters(case, device, (3 * case.channels, case.channels), (case.channels, case.channels))


def _depthwise_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    return dense_parameters(case, device, (case.channels, 1, case.height | 1, case.width | 1))


def _token_mlp_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    size = 2 * case.tokens**2 * getattr(torch, case.dtype).itemsize
    if size > MAX_PARAMETER_BYTES[device]:
        raise Unavailable(f"its weights for {case.tokens} tokens take {size / 2**30:.1f} GiB")
    return dense_parameters(case, device, *(2 * ((case.tokens, case.tokens),)))


def _always(function: Function) -> Callable[[Case, str], Function]:
    return lambda case, device: function


def _on_cuda(function: Function) -> Callable[[Case, str], Function]:
    def only(case: Case, device: str) -> Function:
        if device != "cuda":
            raise Unavailable("CUDA graphs need a CUDA device")
        return function

    return only


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("eager", "the reference mixer in eager PyTorch", mixer_parameters, _always(eager), eager),
        *(fused(backend.NAME) for backend in BACKENDS if backend is not reference),
        compiled("compile", None),
        compiled("compile-autotune", "max-autotune-no-cudagraphs"),
        Provider("eager-graph", "eager, as a CUDA graph", mixer_parameters, _on_cuda(eager), eager, graphed=True),
        Provider("clone", clone.__doc__ or "", lambda case, device: (), _always(clone), clone),
        Provider("attention", attention.__doc__ or "", _attention_parameters, _always(attention), attention),
        Provider("depthwise", depthwise.__doc__ or "", _depthwise_parameters, _always(depthwise), depthwise),
        Provider("token-mlp", token_mlp.__doc__ or "", _token_mlp_parameters, _always(token_mlp), token_mlp),
    )
}
FUSED = tuple(backend.NAME for backend in BACKENDS if backend is not reference)
COMPILED = ("compile", "compile-autotune")
MIXERS = (*FUSED, "eager", *COMPILED, "eager-graph")
OTHERS = ("attention", "depthwise", "token-mlp")


class Call:
    """A provider on a case and one set of inputs: call it for y, or for (y, dx, parameter gradients...)."""

    def __init__(
        self,
        function: Function,
        x: Tensor,  # [B, C, H, W]
        parameters: tuple[Tensor, ...],
        dy: Tensor | None,  # [B, C, H, W]; None: forward only
    ) -> None:
        self._function = function
        self._leaves = tuple(t.detach().requires_grad_(dy is not None) for t in (x, *parameters))
        self._dy = dy

    def __call__(self) -> tuple[Tensor, ...]:
        if self._dy is None:
            with torch.no_grad():
                return (self._function(*self._leaves),)
        y = self._function(*self._leaves)
        return y, *torch.autograd.grad(y, self._leaves, self._dy)


def exact(
    provider: Provider,
    x: Tensor,  # [B, C, H, W]
    parameters: tuple[Tensor, ...],
    dy: Tensor | None,
) -> tuple[Tensor, ...]:
    """The provider's answer in float64; of attention and its like image by image, for N x N weights fill memory."""
    wide: Any = [t.double() for t in (x, *parameters)]
    step = 1 if provider.name in OTHERS else max(1, len(x))
    maps: list[tuple[Tensor, ...]] = []  # y, and dx
    sums: tuple[Tensor, ...] = ()  # gradients of the parameters
    for first in range(0, len(x), step):
        images = slice(first, first + step)
        cotangent = None if dy is None else dy[images].double()
        answer = Call(provider.definition, wide[0][images], tuple(wide[1:]), cotangent)()
        maps.append(answer[:2])
        sums = tuple(a + b for a, b in zip(sums, answer[2:], strict=True)) if sums else answer[2:]
    return *(torch.cat(parts) for parts in zip(*maps, strict=True)), *sums


def minimal_bytes(case: Case) -> int:
    """What a pass must move: x and y once; backward reads x and dy and writes dx as well. Parameters are small."""
    size = getattr(torch, case.dtype).itemsize * case.elements
    return (2 if case.direction == "forward" else 5) * size


def mixer_flops(case: Case) -> float:
    """Real operations of a forward pass: transforms at 2.5 N log2 N, complex products at 8, half a spectrum."""
    D, F_ = case.channels // case.blocks, case.width // 2 + 1
    transforms = 2 * 2.5 * case.tokens * torch.log2(torch.tensor(float(case.tokens))).item()
    perceptron = 2 * 8 * D * case.height * F_
    return case.batch * case.channels * (transforms + perceptron + 6 * case.height * F_)
