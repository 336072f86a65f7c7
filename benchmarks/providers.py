"""What is measured: the fused mixer, PyTorch's forms of the formula, a copy, other global mixers, whole networks."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from affnet_kernels import MixerSpec, available_backends, fused_aff_mixer
from affnet_kernels.backends import CUDA, reference, select
from affnet_kernels.backends.native import EXTENSION
from affnet_kernels.models.token_mixers import attention, depthwise, token_mlp
from affnet_kernels.spec import Parameters
from benchmarks import networks
from benchmarks.cases import Case
from benchmarks.inputs import cotangent, dense_parameters, mixer_parameters
from benchmarks.mixers import clone, fft_convolution, fft_size, flash_attention
from benchmarks.networks import NetworkCall

THRESHOLD = 0.01
MAX_PARAMETER_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}

Function = Callable[..., Tensor]  # (x, *parameters) -> y


class Unavailable(Exception):
    """This provider cannot run this case; the message says why."""


class Provider(NamedTuple):
    name: str
    about: str
    kind: str  # "mixer", the operator itself; "other", another global mixer; "copy"; "network"
    parameters: Callable[[Case, str], tuple[Tensor, ...]]  # (case, device); a network has its own
    build: Callable[[Case, str], Function]  # the operator for a case on a device, or Unavailable
    exact: Callable[[Case], Function]  # its definition, which is run in float64; one object for all that share it
    devices: tuple[str, ...] = ("cpu", "cuda")
    graphed: bool = False  # replayed as a CUDA graph

    @property
    def compiles(self) -> bool:
        return "compile" in self.name


def eager(case: Case, device: str = "") -> Function:
    """The reference mixer under autograd."""
    return lambda x, *parameters: reference.mixer(x, Parameters(*parameters), THRESHOLD, case.activation)


def spec_of(case: Case, device: str) -> MixerSpec:
    x = torch.empty(0, dtype=getattr(torch, case.dtype), device=device)
    return MixerSpec(
        batch=case.batch,
        channels=case.channels,
        height=case.height,
        width=case.width,
        blocks=case.blocks,
        hidden_size=case.channels // case.blocks,
        dtype=x.dtype,
        device=x.device,
        activation=case.activation,
    )


def chosen(case: Case, device: str) -> str:
    """The backend that automatic choice takes."""
    return select(spec_of(case, device), None).NAME


def fused(backend: str | None) -> Callable[[Case, str], Function]:
    def build(case: Case, device: str) -> Function:
        if reasons := available_backends(spec_of(case, device))[backend or chosen(case, device)]:
            raise Unavailable("; ".join(reasons))
        options: dict[str, Any] = {"sparsity_threshold": THRESHOLD, "activation": case.activation, "backend": backend}
        return lambda x, *parameters: fused_aff_mixer(x, *parameters, **options)

    return build


def planned(case: Case, device: str) -> Function:
    """The forward pass of backend "cuda" by cuFFT, where it would otherwise be one launch."""
    function, extension = fused("cuda")(case, device), EXTENSION
    if extension is None or CUDA.path(spec_of(case, device), False).name == "planned":
        raise Unavailable("backend 'cuda' takes this path by itself")

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        extension.set_one_launch(False)
        try:
            return function(x, *parameters)
        finally:
            extension.set_one_launch(True)

    return forward


class Kernel:
    """The chosen backend's kernels called directly: no validation, no dispatcher, no autograd."""

    def __init__(self, case: Case, device: str) -> None:
        self._spec = spec_of(case, device)
        self._forward, self._backward = (select(self._spec, None, backward) for backward in (False, True))

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self._forward.forward(self._spec, x, Parameters(*parameters), THRESHOLD)

    def gradients(self, dy: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return self._backward.backward(self._spec, dy, x, Parameters(*parameters), THRESHOLD, True, True)


def compiled(name: str, mode: str | None) -> Callable[[Case, str], Function]:
    def build(case: Case, device: str) -> Function:
        import torch._functorch.config as functorch

        complex_wrapper = name == "compile-complex"
        if hasattr(functorch, "enable_complex_wrapper"):  # read when the first call compiles, and its backward
            functorch.enable_complex_wrapper = complex_wrapper
        elif complex_wrapper:
            raise Unavailable(f"torch {torch.__version__} has no enable_complex_wrapper")
        torch._dynamo.reset()
        return torch.compile(eager(case), mode=mode, dynamic=False)

    return build


def fused_fft_convolution(case: Case, device: str) -> Function:
    """nvSubquadratic's kernel. Its forward pass is one launch, given the spectrum of the static filter."""
    if importlib.util.find_spec("subquadratic_ops_torch") is None:
        raise Unavailable("subquadratic_ops_torch is not installed")
    try:
        from subquadratic_ops_torch import fused_fft_conv2d as library
    except ImportError as error:
        raise Unavailable(f"subquadratic_ops_torch does not offer fused_fft_conv2d: {error}") from error
    size = fft_size(case.height, case.width)
    if size > 128:
        raise Unavailable(f"fused_fft_conv2d takes maps of up to 64 x 64, got {case.height} x {case.width}")
    if case.direction != "forward":
        return lambda x, kernel: library.fused_fft_conv2d(x, kernel) + x
    spectra: list[Tensor] = []

    def forward(x: Tensor, kernel: Tensor) -> Tensor:
        if not spectra:
            spectra.append(library.fused_rfft2d_fwd(kernel.unsqueeze(0), fft_size=size))
        return library.fused_fft_conv2d_fwd(x, spectra[0]) + x

    return forward


def _attention_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    return dense_parameters(case, device, (3 * case.channels, case.channels), (case.channels, case.channels))


def _depthwise_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    return dense_parameters(case, device, (case.channels, 1, case.height | 1, case.width | 1))


def _fft_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    return tuple(kernel.squeeze(1) for kernel in _depthwise_parameters(case, device))


def _token_mlp_parameters(case: Case, device: str) -> tuple[Tensor, ...]:
    size = 2 * case.tokens**2 * getattr(torch, case.dtype).itemsize
    if size > MAX_PARAMETER_BYTES[device]:
        raise Unavailable(f"its weights for {case.tokens} tokens take {size / 2**30:.1f} GiB")
    return dense_parameters(case, device, *(2 * ((case.tokens, case.tokens),)))


def _mixer(
    name: str, about: str, build: Callable[[Case, str], Function], *devices: str, graphed: bool = False
) -> Provider:
    return Provider(name, about, "mixer", mixer_parameters, build, eager, devices or ("cpu", "cuda"), graphed)


def _other(
    name: str,
    about: str,
    function: Function,
    parameters: Callable[[Case, str], tuple[Tensor, ...]],
    *devices: str,
    kind: str = "other",
    exact: Function | None = None,
    build: Callable[[Case, str], Function] | None = None,
) -> Provider:
    definition, builder = exact or function, build or (lambda case, device: function)
    return Provider(name, about, kind, parameters, builder, lambda case: definition, devices or ("cpu", "cuda"))


def _network(
    name: str,
    about: str,
    build: Callable[[Case], nn.Module],
    *devices: str,
    exact: Callable[[Case], nn.Module] = networks.official,
    graphed: bool = False,
) -> Provider:
    def parameters(case: Case, device: str) -> tuple[Tensor, ...]:
        return ()

    def built(case: Case, device: str) -> Function:
        return build(case).to(device)

    return Provider(name, about, "network", parameters, built, exact, devices or ("cpu", "cuda"), graphed)


def _rival_network(name: str, mixer: str, about: str) -> Provider:
    build = partial(networks.network, mixer=mixer)
    return _network(name, about, build, exact=build)


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        _mixer("eager", "the reference mixer in eager PyTorch", eager),
        _mixer("cpu", "the fused mixer, backend 'cpu'", fused("cpu"), "cpu"),
        _mixer("triton", "the fused mixer, backend 'triton'", fused("triton"), "cuda"),
        _mixer("cuda", "the fused mixer, backend 'cuda'", fused("cuda"), "cuda"),
        _mixer("planned", "the forward pass of backend 'cuda' by cuFFT, where it would be one launch", planned, "cuda"),
        _mixer("auto", "the fused mixer, the backend that is chosen automatically", fused(None)),
        _mixer("kernel", "the chosen backend's kernels without the public call around them", Kernel),
        _mixer("compile", "torch.compile of eager", compiled("compile", None)),
        _mixer("compile-complex", "the same with complex numbers taken apart", compiled("compile-complex", None)),
        _mixer(
            "compile-autotune",
            "torch.compile, mode max-autotune-no-cudagraphs",
            compiled("compile-autotune", "max-autotune-no-cudagraphs"),
            "cuda",
        ),
        _mixer("eager-graph", "eager, as a CUDA graph", eager, "cuda", graphed=True),
        _other("clone", "the same bytes in and out, and nothing else", clone, lambda case, device: (), kind="copy"),
        _other(
            "attention",
            "softmax self-attention over the tokens, with its projections",
            attention,
            _attention_parameters,
        ),
        _other(
            "attention-flash",
            "the same by PyTorch's flash kernel and no other",
            flash_attention,
            _attention_parameters,
            "cuda",
            exact=attention,
        ),
        _other("depthwise", "a static depthwise convolution as large as the map", depthwise, _depthwise_parameters),
        _other(
            "token-mlp", "MLP-Mixer's token mixing, as many hidden units as tokens", token_mlp, _token_mlp_parameters
        ),
        _other(
            "fft-conv",
            "nvSubquadratic's fused_fft_conv2d: a static depthwise convolution in one launch",
            fft_convolution,
            _fft_parameters,
            "cuda",
            build=fused_fft_convolution,
        ),
        _network("official", "the network in eager PyTorch, with the reference mixer", networks.official),
        _network("fused", "the network in eager PyTorch, with the fused mixer", networks.fused),
        _network("fused-channels-last", "the same in the channels-last format", networks.channels_last),
        _network("fused-inference", "fused, through fuse_for_inference", networks.fused_for_inference),
        _network("compiled", "torch.compile of official", networks.compiled(networks.official)),
        _network("fused-compiled", "torch.compile of fused", networks.compiled(networks.fused)),
        _network("official-graph", "official, as a CUDA graph", networks.official, "cuda", graphed=True),
        _network(
            "fused-inference-graph",
            "fused-inference, as a CUDA graph",
            networks.fused_for_inference,
            "cuda",
            graphed=True,
        ),
        _rival_network("with-attention", "attention", "the network with self-attention as its mixer"),
        _rival_network("with-large-kernel", "large-kernel", "the network with a depthwise convolution as its mixer"),
        _rival_network("with-mlp", "mlp", "the network with a token-mixing MLP as its mixer"),
    )
}


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

    def on(self, x: Tensor) -> Call:
        """The same on another input."""
        return Call(self._function, x, self._leaves[1:], self._dy)

    def __call__(self) -> tuple[Tensor, ...]:
        if self._dy is None:
            with torch.no_grad():
                return (self._function(*self._leaves),)
        if isinstance(self._function, Kernel):
            with torch.no_grad():
                return self._function(*self._leaves), *self._function.gradients(self._dy, *self._leaves)
        y = self._function(*self._leaves)
        return y, *torch.autograd.grad(y, self._leaves, self._dy)


def call_of(
    provider: Provider,
    case: Case,
    x: Tensor,  # [B, C, H, W]
) -> Call | NetworkCall:
    """The provider's call on an input of the case.

    Raises:
        Unavailable: the provider cannot run this case.
    """
    device = x.device.type
    function = provider.build(case, device)
    if isinstance(function, nn.Module):
        return NetworkCall(function, x, case)
    x = x.to(getattr(torch, case.dtype))
    dy = None if case.direction == "forward" else cotangent(x)
    return Call(function, x, provider.parameters(case, device), dy)


def exact(
    provider: Provider,
    case: Case,
    x: Tensor,  # [B, C, H, W]
) -> tuple[Tensor, ...]:
    """The provider's answer in float64. Other mixers go image by image, or N x N matrices would fill the memory."""
    if provider.kind == "network":
        return NetworkCall(provider.exact(case).to(x.device).double(), x.double(), case)()
    dy = None if case.direction == "forward" else cotangent(x)
    wide = [t.double() for t in (x, *provider.parameters(case, x.device.type))]
    count = 1 if provider.kind == "other" else max(1, len(x))
    maps: list[tuple[Tensor, ...]] = []  # y, and dx
    sums: tuple[Tensor, ...] = ()  # gradients of the parameters
    for first in range(0, len(x), count):
        images = slice(first, first + count)
        part = None if dy is None else dy[images].double()
        answer = Call(provider.exact(case), wide[0][images], tuple(wide[1:]), part)()
        maps.append(answer[:2])
        sums = tuple(a + b for a, b in zip(sums, answer[2:], strict=True)) if sums else answer[2:]
    return *(torch.cat(parts) for parts in zip(*maps, strict=True)), *sums


def minimal_bytes(case: Case) -> int:
    """What a pass must move: x and y once; backward reads x and dy and writes dx as well. Parameters are small."""
    size = getattr(torch, case.dtype).itemsize * case.elements
    return (2 if case.direction == "forward" else 5) * size


def mixer_flops(case: Case) -> float:
    """Real operations in a forward pass: 2.5 N log2 N per transform, 8 per complex product of the half spectrum."""
    D, frequencies = case.channels // case.blocks, case.height * (case.width // 2 + 1)
    transforms = 2 * 2.5 * case.tokens * math.log2(case.tokens)
    return case.batch * case.channels * (transforms + (2 * 8 * D + 6) * frequencies)
