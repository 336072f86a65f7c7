"""What the compiler and autograd see: two opaque raw operators and two autograd Functions around them.

`register_autograd` is not used: through it `torch.func.grad` and `vmap(grad)` fail and `torch.func.jvp` silently
returns zeros. A Function with `setup_context` and `vmap` serves them all; without a `jvp` method forward-mode
differentiation raises, and a `jvp` method would break `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from affnet_kernels.backends import reference, select
from affnet_kernels.spec import Gradients, MixerSpec, Parameters

_library = torch.library.Library("affnet_kernels", "FRAGMENT")
_library.define(
    "mixer_forward(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "float sparsity_threshold, str activation, str? backend) -> Tensor"
)
_library.define(
    "mixer_backward(Tensor dy, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "float sparsity_threshold, str activation, str? backend, bool input_grad, bool parameter_grads) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def mixer(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
) -> Tensor:  # [B, C, H, W]
    """The mixer as a differentiable operator; arguments are validated, parameters are in `compute_dtype(x.dtype)`."""
    args = x, w1, b1, w2, b2, sparsity_threshold, activation, backend
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _transforms_active() or _forward_mode_active():
        return _apply(_Forward, *args)
    return torch.ops.affnet_kernels.mixer_forward(*args)


_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _forward_mode_active() -> bool:
    """Whether there may be dual tensors, whose tangents the raw operator would silently drop."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply`, which inspects a signature at every call, without that where no transform needs it.

    For a small map it takes as long as the whole forward pass: 25 µs, against 11 µs.
    """
    if torch.compiler.is_compiling() or _transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


# The backend is chosen in the operator's body, from real sizes: a choice outside would put guards on symbolic ones,
# and would pin an exported program to the machine that exported it.
def _forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    sparsity_threshold: float,
    activation: str,
    backend: str | None,
) -> Tensor:
    spec = MixerSpec.of(x, w1, activation)
    chosen = select(spec, backend)
    if x.numel() == 0:  # torch.fft raises for an empty batch
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return chosen.forward(spec, x, Parameters(w1, b1, w2, b2), sparsity_threshold)


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
) -> Gradients:
    spec = MixerSpec.of(x, w1, activation)
    chosen = select(spec, backend)
    if x.numel() == 0:
        empty = _backward_fake(
            dy, x, w1, b1, w2, b2, sparsity_threshold, activation, backend, input_grad, parameter_grads
        )
        return tuple(gradient.zero_() for gradient in empty)  # type: ignore[return-value]
    parameters = Parameters(w1, b1, w2, b2)
    return chosen.backward(spec, dy, x, parameters, sparsity_threshold, input_grad, parameter_grads)


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


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
) -> Gradients:
    needed = (input_grad, *(4 * (parameter_grads,)))
    shapes = (tensor.shape if need else (0,) for tensor, need in zip((x, w1, b1, w2, b2), needed, strict=True))
    dtypes = (x.dtype, w1.dtype, b1.dtype, w2.dtype, b2.dtype)
    return tuple(x.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))  # type: ignore[return-value]


_library.impl("mixer_forward", _forward, "CompositeExplicitAutograd")
_library.impl("mixer_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("affnet_kernels::mixer_forward", _forward_fake, lib=_library)
torch.library.register_fake("affnet_kernels::mixer_backward", _backward_fake, lib=_library)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(  # not *args: Dynamo would take them to include ctx
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        sparsity_threshold: float,
        activation: str,
        backend: str | None,
    ) -> Tensor:
        return torch.ops.affnet_kernels.mixer_forward(x, w1, b1, w2, b2, sparsity_threshold, activation, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.sparsity_threshold, ctx.activation, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_needed, *parameters_needed, _, _, _ = ctx.needs_input_grad
        options = ctx.sparsity_threshold, ctx.activation, ctx.backend, x_needed, any(parameters_needed)
        if torch.is_grad_enabled() or _transforms_active():  # a second derivative or a transform may follow
            gradients = _apply(_Backward, dy, *ctx.saved_tensors, *options)
        else:
            gradients = torch.ops.affnet_kernels.mixer_backward(dy, *ctx.saved_tensors, *options)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if need else None for gradient, need in needed), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        if all(dim is None for dim in in_dims[1:]):  # one set of parameters: more images
            x = args[0].movedim(in_dims[0], 0)
            y = _Forward.apply(x.flatten(0, 1), *args[1:])
            return y.unflatten(0, (size, x.shape[1])), 0
        y = _Forward.apply(*_as_blocks(args[:5], in_dims[:5], size), *args[5:])
        return y.unflatten(1, (size, -1)), 1


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
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
    ) -> Gradients:
        return torch.ops.affnet_kernels.mixer_backward(
            dy, x, w1, b1, w2, b2, sparsity_threshold, activation, backend, input_grad, parameter_grads
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        *tensors, ctx.sparsity_threshold, ctx.activation, _, ctx.input_grad, ctx.parameter_grads = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The second derivative, through the reference's formula."""

        def formula(dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Gradients:
            options = ctx.sparsity_threshold, ctx.activation, ctx.input_grad, ctx.parameter_grads
            return reference.mixer_vjp(dy, x, Parameters(w1, b1, w2, b2), *options)

        vjp = torch.func.vjp(formula, *ctx.saved_tensors)[1]
        return *vjp(cotangents), None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Gradients, tuple[int, ...]]:
        # Every instance has parameter gradients of its own, so it needs blocks of its own.
        size = info.batch_size
        gradients = _Backward.apply(*_as_blocks(args[:6], in_dims[:6], size), *args[6:])
        *_, input_grad, parameter_grads = args
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
