"""The mixer as PyTorch operators: schemas, derivatives, vmap rules, fake kernels, and the direct way in eager mode.

`mixer_forward` and `mixer_backward` are complete operators: autograd, `torch.func`, `torch.compile`, `torch.export` and
a direct call of `torch.ops.affnet_kernels` all find the derivative on the operator. It is an autograd Function of
a single level, registered for the Autograd key as derivatives written in C++ are, so functorch can run it at any of its
levels. (`torch.library.register_autograd` fails under `torch.func.grad` and returns zero tangents from
`torch.func.jvp`; a Function around an operator without a derivative is lost wherever PyTorch sees only the operator.)
Forward-mode differentiation raises.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function  # type: ignore[attr-defined]
from torch._prims_common import suggest_memory_format
from torch.autograd.function import _SingleLevelFunction

from affnet_kernels.backends import reference, select, triton
from affnet_kernels.backends.native import EXTENSION, Native
from affnet_kernels.spec import Gradients, MixerSpec, Parameters

# The compiled extension defines the same schemas (csrc/extension.cpp), so that a C++ program can load them without
# Python. `dynamic_threshold`, a scalar tensor on the CPU, replaces `sparsity_threshold` where torch.compile keeps the
# threshold symbolic: a program that took the number itself would be compiled again for every value.
SCHEMAS = (
    "mixer_forward(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "Scalar sparsity_threshold, str activation, str? backend, Tensor? dynamic_threshold=None) -> Tensor",
    "mixer_backward(Tensor dy, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "Scalar sparsity_threshold, str activation, str? backend, bool input_grad, bool parameter_grads, "
    "Tensor? dynamic_threshold=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def mixer_eager(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
) -> Tensor | None:  # [B, C, H, W]
    """`mixer` of unvalidated arguments, with autograd in C++; None where the general way must be taken instead.

    That is where an argument is invalid or needs a conversion, or where something other than autograd must see the
    operator. On a small map this saves more time than the kernel takes.
    """
    if (
        EXTENSION is None
        or torch.compiler.is_compiling()
        or type(sparsity_threshold) is not float
        or type(activation) is not str
        or not (isinstance(x, Tensor) and isinstance(w1, Tensor) and isinstance(b1, Tensor))
        or not (isinstance(w2, Tensor) and isinstance(b2, Tensor))
        or x.dim() != 4
        or w1.dim() != 4
    ):
        return None
    route = _route(MixerSpec.of(x, w1, activation), backend)
    if route.compiles and (x.requires_grad or w1.requires_grad) and torch.is_grad_enabled():
        route.compile_backward(x, w1, b1, w2, b2)
    return EXTENSION.mixer_eager(
        x, w1, b1, w2, b2, sparsity_threshold, activation, backend, route.native, route.native_backward
    )


class _Route:
    """Which backends the passes of a spec's calls go to, and whether the backward is still to be compiled."""

    def __init__(self, spec: MixerSpec, backend: str | None) -> None:
        backward = select(spec, backend, True)
        self._spec = spec
        self.native = isinstance(select(spec, backend), Native)
        self.native_backward = isinstance(backward, Native)
        self.compiles = backward is triton

    def compile_backward(self, x: Tensor, *parameters: Tensor) -> None:
        """Has Triton compile the backward of the first call that autograd records, before its forward runs."""
        if torch._C._functorch.peek_interpreter_stack() is not None:  # the backward may be called with other sizes
            return
        self.compiles = False
        parameter_grads = any(parameter.requires_grad for parameter in parameters)
        triton.compile_backward(self._spec, x.requires_grad, parameter_grads)


_route = lru_cache(maxsize=1024)(_Route)


def mixer(
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,  # in compute_dtype(x.dtype)
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
) -> Tensor:  # [B, C, H, W]
    """The mixer as a differentiable operator, of validated arguments."""
    return torch.ops.affnet_kernels.mixer_forward(x, *parameters, sparsity_threshold, activation, backend)


# The backend is chosen in the operator's body, from real sizes: a choice outside would put guards on symbolic ones,
# and would bind an exported program to the machine that exported it.
def _forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
    dynamic_threshold: Tensor | None = None,
) -> Tensor:
    spec = MixerSpec.of(x, w1, activation)
    chosen = select(spec, backend)
    if x.numel() == 0:  # torch.fft raises for an empty batch
        return torch.empty_like(x, memory_format=_memory_format(x))
    threshold = sparsity_threshold if dynamic_threshold is None else dynamic_threshold.item()
    y = chosen.forward(spec, x, Parameters(w1, b1, w2, b2), threshold)
    return y.contiguous(memory_format=_memory_format(x))


def _backward(
    dy: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
    input_grad: bool,
    parameter_grads: bool,
    dynamic_threshold: Tensor | None = None,
) -> Gradients:
    spec, parameters = MixerSpec.of(x, w1, activation), Parameters(w1, b1, w2, b2)
    chosen = select(spec, backend, True)
    if x.numel() == 0:
        empty = _empty_gradients(x, parameters, input_grad, parameter_grads)
        return tuple(gradient.zero_() for gradient in empty)  # type: ignore[return-value]
    threshold = sparsity_threshold if dynamic_threshold is None else dynamic_threshold.item()
    dx, *others = chosen.backward(spec, dy, x, parameters, threshold, input_grad, parameter_grads)
    return (dx.contiguous(memory_format=_memory_format(x)) if input_grad else dx, *others)  # type: ignore[return-value]


def _memory_format(x: Tensor) -> torch.memory_format:
    """The format that x has, contiguous or channels-last, and that y and dx are given."""
    return torch.contiguous_format if x.is_contiguous() else suggest_memory_format(x)


def _empty_gradients(
    x: Tensor,
    parameters: Parameters,
    input_grad: bool,
    parameter_grads: bool,
) -> Gradients:
    needed = (input_grad, *(4 * (parameter_grads,)))
    shapes = (tensor.shape if need else (0,) for tensor, need in zip((x, *parameters), needed, strict=True))
    dx, *rest = (t.new_empty(shape) for t, shape in zip((x, *parameters), shapes, strict=True))
    return (torch.empty_like(x, memory_format=_memory_format(x)) if input_grad else dx, *rest)  # type: ignore[return-value]


def _forward_fake(
    x: Tensor,
    *_: Any,
    dynamic_threshold: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
    input_grad: bool,
    parameter_grads: bool,
    dynamic_threshold: Tensor | None = None,
) -> Gradients:
    return _empty_gradients(x, Parameters(w1, b1, w2, b2), input_grad, parameter_grads)


def _compile_backward(
    tensors: list[Tensor],  # x and the parameters; fake ones where torch.compile traces the call
    activation: str,
    backend: str | None,
) -> None:
    x, w1 = tensors[:2]
    if any(type(size) is not int for size in (*x.shape, *w1.shape)):
        return  # symbolic: when the compiled program runs, whether autograd records it can no longer be seen
    with suppress(NotImplementedError, ValueError):  # the operator's body says so, on the machine that runs it
        route = _route(MixerSpec.of(x, w1, activation), backend)
        if route.compiles:
            route.compile_backward(*tensors)


class _Forward(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, grad_enabled: bool, *arguments: Any) -> Tensor:
        *tensors, ctx.sparsity_threshold, ctx.activation, ctx.backend, dynamic_threshold = arguments
        ctx.save_for_backward(*tensors, dynamic_threshold)
        if grad_enabled and any(ctx.needs_input_grad):
            _compile_backward(tensors, ctx.activation, ctx.backend)
        with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(grad_enabled):
            return torch.ops.affnet_kernels.mixer_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, dynamic_threshold = ctx.saved_tensors
        _, x_needed, *parameters_needed = ctx.needs_input_grad[:6]
        options = ctx.sparsity_threshold, ctx.activation, ctx.backend, x_needed, any(parameters_needed)
        gradients = torch.ops.affnet_kernels.mixer_backward(dy, *tensors, *options, dynamic_threshold)
        needed = zip(gradients, (x_needed, *parameters_needed), strict=True)
        return None, *(gradient if need else None for gradient, need in needed), None, None, None, None


class _Backward(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, grad_enabled: bool, *arguments: Any) -> Gradients:
        *tensors, ctx.sparsity_threshold, ctx.activation, _, ctx.input_grad, ctx.parameter_grads, dynamic = arguments
        ctx.save_for_backward(*tensors, dynamic)
        with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(grad_enabled):
            return torch.ops.affnet_kernels.mixer_backward(*arguments)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The second derivative, through the reference's formula."""
        *tensors, dynamic_threshold = ctx.saved_tensors
        threshold = ctx.sparsity_threshold if dynamic_threshold is None else dynamic_threshold

        def formula(dy: Tensor, x: Tensor, *parameters: Tensor) -> Gradients:
            options = threshold, ctx.activation, ctx.input_grad, ctx.parameter_grads
            return reference.mixer_vjp(dy, x, Parameters(*parameters), *options)

        vjp = torch.func.vjp(formula, *tensors)[1]
        return None, *vjp(cotangents), None, None, None, None, None, None


def _autograd_kernel(
    operator: Callable[..., Any],
    function: type[_SingleLevelFunction],
    threshold_at: int,  # the position of sparsity_threshold
    count: int,  # of the arguments without the last, dynamic_threshold
) -> Callable[..., Any]:
    """`function` as the kernel of an operator's Autograd key, which functorch may run at any of its levels.

    A public `torch.autograd.Function` would pass the call to functorch, which has just made it. Below this level the
    caller's grad mode is restored: `apply` switches it off, and outer levels would record nothing.
    """

    def kernel(*arguments: Any) -> Any:
        if isinstance(threshold := arguments[threshold_at], torch.SymFloat):
            dynamic = torch.ones((), dtype=torch.float64, device="cpu") * threshold  # type: ignore[operator]
            return operator(*arguments[:threshold_at], 0.0, *arguments[threshold_at + 1 : count], dynamic)
        if len(arguments) == count:
            arguments = (*arguments, None)
        with enable_single_level_autograd_function():
            return function.apply(torch.is_grad_enabled(), *arguments)  # type: ignore[attr-defined]

    return kernel


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    forward = torch.ops.affnet_kernels.mixer_forward
    if all(dim is None for dim in in_dims[1:]):  # one set of parameters: more images
        x = arguments[0].movedim(in_dims[0], 0)
        return forward(x.flatten(0, 1), *arguments[1:]).unflatten(0, (size, x.shape[1])), 0
    y = forward(*_as_blocks(arguments[:5], in_dims[:5], size), *arguments[5:])
    return y.unflatten(1, (size, -1)), 1


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Gradients, tuple[int, ...]]:
    # Every instance has parameter gradients of its own, so it needs blocks of its own.
    size = info.batch_size
    gradients = torch.ops.affnet_kernels.mixer_backward(*_as_blocks(arguments[:6], in_dims[:6], size), *arguments[6:])
    input_grad, parameter_grads = arguments[9:11]
    needed = (input_grad, *(4 * (parameter_grads,)))
    return tuple(
        gradient.unflatten(1, (size, -1)).movedim(1, 0) if need else gradient.expand(size, 0)
        for gradient, need in zip(gradients, needed, strict=True)
    ), (0, 0, 0, 0, 0)


def _as_blocks(
    tensors: tuple[Tensor, ...],  # batched over V at in_dims, or not
    in_dims: tuple[int | None, ...],
    size: int,  # V
) -> list[Tensor]:
    """V instances of the mixer as one of V * K blocks: axis 1 of every tensor counts blocks or their channels."""
    batched = (
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    )
    return [tensor.movedim(0, 1).flatten(1, 2) for tensor in batched]


def _register() -> None:
    namespace = torch.ops.affnet_kernels
    if (earlier := getattr(namespace, "_library", None)) is not None:  # the package is imported a second time
        earlier._destroy()
    library = torch.library.Library("affnet_kernels", "FRAGMENT")
    if EXTENSION is None:
        for schema in SCHEMAS:
            library.define(schema)
    for name, body, fake, function, vmap, threshold_at, count in (
        ("mixer_forward", _forward, _forward_fake, _Forward, _forward_vmap, 5, 8),
        ("mixer_backward", _backward, _backward_fake, _Backward, _backward_vmap, 6, 11),
    ):
        library.impl(name, body, "CompositeExplicitAutograd")
        kernel = _autograd_kernel(getattr(namespace, name), function, threshold_at, count)
        library.impl(name, kernel, "Autograd")
        torch.library.register_fake(f"affnet_kernels::{name}", fake, lib=library)
        torch.library.register_vmap(f"affnet_kernels::{name}", vmap, lib=library)
    setattr(namespace, "_library", library)  # noqa: B010 - keeps the registrations alive


_register()
