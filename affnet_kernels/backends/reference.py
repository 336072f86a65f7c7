"""The operator written for reading: eager PyTorch on any device, and the definition every backend is held to.

The inverse transform is the two-step one: a complex inverse FFT along H, then a complex-to-real inverse along W,
which ignores the imaginary part of the DC and Nyquist columns. `torch.fft.irfft2` does the same on the CPU; on CUDA
it hands both axes to one cuFFT plan that may assume a symmetry which the masked spectrum does not have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from affnet_kernels.activations import activation_named
from affnet_kernels.spec import Gradients, MixerSpec, Parameters, compute_dtype

NAME = "reference"

Complex = tuple[Tensor, Tensor]
"""A complex array as its real and imaginary parts: a lazy conjugate inside an op is ignored under torch.compile."""


def unsupported(
    spec: MixerSpec | None,
) -> list[str]:
    """Reasons why this backend cannot run `spec`: none, ever."""
    return []


def mixer(
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float | Tensor,
    activation: str,
) -> Tensor:  # [B, C, H, W]
    """The mixer, residual included: differentiable PyTorch, computed in float32 or better, autocast or not."""
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(compute_dtype(x.dtype))
        X = spectrum(wide, parameters[0].shape[1])
        M, _ = mask(X, parameters, sparsity_threshold, activation)
        return (inverse_spectrum(multiply(M, X), x.shape[-1]) + wide).to(x.dtype)


def mixer_vjp(
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float | Tensor,
    activation: str,
    input_grad: bool,
    parameter_grads: bool,
) -> Gradients:
    """Gradients by the analytic formula, itself differentiable; a group that is not asked for comes back empty."""
    with torch.autocast(x.device.type, enabled=False):
        w1, _, w2, _ = parameters
        blocks, width = w1.shape[1], x.shape[-1]
        wide_dy = dy.to(compute_dtype(x.dtype))
        X = spectrum(x.to(compute_dtype(x.dtype)), blocks)
        G = spectrum(wide_dy, blocks)
        M, (P1, O1, P2) = mask(X, parameters, sparsity_threshold, activation)

        dM = multiply_conj(G, X)
        dP2 = soft_shrink_vjp(dM[0], P2[0], sparsity_threshold), soft_shrink_vjp(dM[1], P2[1], sparsity_threshold)
        dO1 = block_linear_vjp(dP2, w2)
        activate_vjp = activation_named(activation).vjp
        dP1 = activate_vjp(dO1[0], P1[0]), activate_vjp(dO1[1], P1[1])

        dx = x.new_empty(0)
        dw1, db1, dw2, db2 = (w1.new_empty(0) for _ in range(4))
        if input_grad:
            direct, through_mask = multiply_conj(G, M), block_linear_vjp(dP1, w1)
            dX = (direct[0] + through_mask[0], direct[1] + through_mask[1])
            dx = (inverse_spectrum(dX, width) + wide_dy).to(x.dtype)
        if parameter_grads:
            weight = hermitian_weight(width, G[0])
            dP1, dP2 = (dP1[0] * weight, dP1[1] * weight), (dP2[0] * weight, dP2[1] * weight)
            dw1, db1, dw2, db2 = weight_grad(X, dP1), bias_grad(dP1), weight_grad(O1, dP2), bias_grad(dP2)
        return dx, dw1, db1, dw2, db2


def forward(
    spec: MixerSpec,
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
) -> Tensor:  # [B, C, H, W]
    return mixer(x, parameters, sparsity_threshold, spec.activation)


def backward(
    spec: MixerSpec,
    dy: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    parameters: Parameters,
    sparsity_threshold: float,
    input_grad: bool,
    parameter_grads: bool,
) -> Gradients:
    return mixer_vjp(dy, x, parameters, sparsity_threshold, spec.activation, input_grad, parameter_grads)


def spectrum(
    x: Tensor,  # [B, C, H, W]
    blocks: int,
) -> Complex:  # each [B, K, D, H, F]
    """The orthonormal half spectrum, with the channels split into blocks."""
    X = torch.fft.rfft2(x, norm="ortho").unflatten(1, (blocks, -1))
    return X.real, X.imag


def inverse_spectrum(
    Y: Complex,  # each [B, K, D, H, F]
    width: int,
) -> Tensor:  # [B, C, H, W]
    """The two-step inverse: complex along H, then complex to real along W."""
    columns = torch.fft.ifft(torch.complex(*Y).flatten(1, 2), dim=-2, norm="ortho")
    return torch.fft.irfft(columns, n=width, dim=-1, norm="ortho")


def mask(
    X: Complex,  # each [B, K, D, H, F]
    parameters: Parameters,
    sparsity_threshold: float | Tensor,
    activation: str,
) -> tuple[Complex, tuple[Complex, Complex, Complex]]:
    """The adaptive mask M [B, K, D, H, F], and what its derivative needs: P1, O1 = act(P1), P2; M = soft_shrink(P2)."""
    w1, b1, w2, b2 = parameters
    activate = activation_named(activation).value
    P1 = block_linear(X, w1, b1)
    O1 = activate(P1[0]), activate(P1[1])
    P2 = block_linear(O1, w2, b2)
    M = soft_shrink(P2[0], sparsity_threshold), soft_shrink(P2[1], sparsity_threshold)
    return M, (P1, O1, P2)


def block_linear(
    X: Complex,  # each [B, K, I, H, F]
    w: Tensor,  # [2, K, I, O]
    b: Tensor,  # [2, K, O]
) -> Complex:  # each [B, K, O, H, F]
    """A complex linear layer over the channels of each block."""
    Xr, Xi = X
    real = _contract(Xr, w[0]) - _contract(Xi, w[1]) + b[0, :, :, None, None]
    imag = _contract(Xr, w[1]) + _contract(Xi, w[0]) + b[1, :, :, None, None]
    return real, imag


def block_linear_vjp(
    dO: Complex,  # each [B, K, O, H, F]
    w: Tensor,  # [2, K, I, O]
) -> Complex:  # each [B, K, I, H, F]
    """Gradient of `block_linear` with respect to its input."""
    wr, wi = w.transpose(-1, -2)
    return _contract(dO[0], wr) + _contract(dO[1], wi), _contract(dO[1], wr) - _contract(dO[0], wi)


def weight_grad(
    X: Complex,  # each [B, K, I, H, F], the layer's input
    dO: Complex,  # each [B, K, O, H, F]
) -> Tensor:  # [2, K, I, O]
    """Gradient of `block_linear` with respect to its weight."""

    def outer(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bkihw,bkohw->kio", a, b)

    real = outer(X[0], dO[0]) + outer(X[1], dO[1])
    imag = outer(X[0], dO[1]) - outer(X[1], dO[0])
    return torch.stack((real, imag))


def bias_grad(
    dO: Complex,  # each [B, K, O, H, F]
) -> Tensor:  # [2, K, O]
    """Gradient of `block_linear` with respect to its bias."""
    return torch.stack([d.sum((0, 3, 4)) for d in dO])


def multiply(a: Complex, b: Complex) -> Complex:
    """a * b."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def multiply_conj(a: Complex, b: Complex) -> Complex:
    """a * conj(b)."""
    return a[0] * b[0] + a[1] * b[1], a[1] * b[0] - a[0] * b[1]


def soft_shrink(v: Tensor, threshold: float | Tensor) -> Tensor:
    """v moved towards zero by `threshold`, and zero within it."""
    if isinstance(threshold, Tensor):  # which F.softshrink does not take
        limit = threshold.to(v.dtype)
        return v - torch.clamp(v, -limit, limit)
    return F.softshrink(v, min(threshold, torch.finfo(v.dtype).max))


def soft_shrink_vjp(d: Tensor, v: Tensor, threshold: float | Tensor) -> Tensor:
    return d * ~(v.abs() <= threshold)


def hermitian_weight(
    width: int,
    like: Tensor,
) -> Tensor:  # [F]
    """How often a column of the half spectrum stands in the full one: once for DC and Nyquist, else twice."""
    weight = torch.full((width // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weight[0] = 1
    if width % 2 == 0:
        weight[-1] = 1
    return weight


def _contract(
    X: Tensor,  # [B, K, I, H, F]
    w: Tensor,  # [K, I, O]
) -> Tensor:  # [B, K, O, H, F]
    return torch.einsum("bkihw,kio->bkohw", X, w)
