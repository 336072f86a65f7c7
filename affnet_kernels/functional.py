"""The public call: validation of its arguments, and the explanation of its backend."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from affnet_kernels import ops
from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.backends import Explanation, explain_choice
from affnet_kernels.spec import DTYPES, MixerSpec, Parameters, compute_dtype


def fused_aff_mixer(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor,  # [2, K, Dh]
    w2: Tensor,  # [2, K, Dh, D]
    b2: Tensor,  # [2, K, D]
    *,
    sparsity_threshold: float = 0.01,
    activation: str = "relu",
    backend: str | None = None,
) -> Tensor:  # [B, C, H, W]
    r"""Mix the tokens of a feature map by an adaptive frequency filter, residual included.

    .. math:: y = \mathcal{F}^{-1}\bigl(M(\mathcal{F}(x)) \odot \mathcal{F}(x)\bigr) + x

    with the orthonormal real 2-D FFT, and the mask `M` a two-layer complex perceptron over the channels of each block.

    Equivalent to::

        X = torch.fft.rfft2(x, norm="ortho").unflatten(1, (K, D))            # [B, K, D, H, F], complex
        W1, B1, W2, B2 = (torch.complex(p[0], p[1]) for p in (w1, b1, w2, b2))
        O1 = torch.einsum("bkihw,kio->bkohw", X, W1) + B1[..., None, None]
        O1 = torch.complex(activation(O1.real), activation(O1.imag))
        O2 = torch.einsum("bkihw,kio->bkohw", O1, W2) + B2[..., None, None]
        M = torch.complex(softshrink(O2.real, threshold), softshrink(O2.imag, threshold))
        columns = torch.fft.ifft((M * X).flatten(1, 2), dim=-2, norm="ortho")
        y = torch.fft.irfft(columns, n=W, dim=-1, norm="ortho") + x

    Computed in float64 for float64 input, else in float32 with one rounding at the end; autocast does not change that.
    Only `x` and the parameters are kept for the backward pass. Works with `torch.compile(fullgraph=True)`,
    `torch.export`, `torch.func` (not forward mode) and double backward.

    Args:
        x: feature map [B, C, H, W], C = K * D; float64, float32, float16 or bfloat16; any layout, H and W from 1 up,
            B from 0 up.
        w1: first layer's weight [2, K, D, Dh]; index 0 of the first axis is the real part, 1 the imaginary, as in all
            parameters. Parameters share one dtype: x's, or float32 where x is float16 or bfloat16.
        b1: its bias [2, K, Dh].
        w2: second layer's weight [2, K, Dh, D].
        b2: its bias [2, K, D].
        sparsity_threshold: soft-shrink threshold of the mask, >= 0, in the mask's own (dimensionless) units.
        activation: "relu", "silu", "gelu" (the exact, erf form), "tanh" or "identity", applied to real and imaginary
            parts separately.
        backend: "cpu", "triton", "cuda" or "reference" to insist on one; None takes the first that can run the call,
            see `available_backends`.

    Returns:
        y [B, C, H, W], of x's dtype, device and memory format: channels-last, or else contiguous.

    Raises:
        ValueError: a shape, the threshold, the activation or the backend's name is not as above.
        TypeError: a dtype is not as above, or an argument is not a tensor.
        NotImplementedError: the named backend cannot run this call; the message says why, for every backend.

    Source: Huang et al., "Adaptive Frequency Filters As Efficient Global Token Mixers", ICCV 2023, arXiv 2307.14008.
    """
    y = ops.mixer_eager(x, w1, b1, w2, b2, sparsity_threshold, activation, backend)
    if y is not None:
        return y
    tensors = (x, w1, b1, w2, b2)
    if has_torch_function(tensors):  # such as the Proxy of torch.fx, which records the call
        options: dict[str, Any] = {
            "sparsity_threshold": sparsity_threshold,
            "activation": activation,
            "backend": backend,
        }
        return handle_torch_function(fused_aff_mixer, tensors, *tensors, **options)
    _check(x, (w1, b1, w2, b2), sparsity_threshold, activation)
    wanted = compute_dtype(x.dtype)
    w1, b1, w2, b2 = (p if p.dtype == wanted else p.to(wanted) for p in (w1, b1, w2, b2))
    return ops.mixer(x, Parameters(w1, b1, w2, b2), float(sparsity_threshold), activation, backend)


def explain(
    x: Tensor,  # [B, C, H, W]
    w1: Tensor,  # [2, K, D, Dh]
    b1: Tensor | None = None,
    w2: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    sparsity_threshold: float = 0.01,
    activation: str = "relu",
    backend: str | None = None,
) -> Explanation:
    """Say which backend `fused_aff_mixer` runs for the same arguments, and why every other one does not.

    Nothing is computed, and only `x`, `w1`, `activation` and `backend` matter; the others are taken so that a call can
    be explained by changing the function's name. ::

        >>> print(affnet_kernels.explain(x, *mixer.parameters(), activation=mixer.activation))
          cpu: runs: it comes first, one pass over each tile while the caches hold it is faster ...
          triton: cannot run this call: expected a tensor on cuda, got one on cpu
          cuda: cannot run this call: the extension was built without CUDA; ...
          reference: can run this call, but cpu is preferred

    Returns:
        `chosen`, the name of the backend (None if the one asked for cannot run), and `reasons` for every backend.
    """
    return explain_choice(MixerSpec.of(x, w1, activation), backend)


def _check(
    x: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
    sparsity_threshold: float,
    activation: str,
) -> None:
    names = ("w1", "b1", "w2", "b2")
    for name, tensor in zip(("x", *names), (x, *parameters), strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(_message(f"{name} to be a tensor", type(tensor).__name__))
    if x.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(_message(f"x of one of the dtypes {known}", x.dtype))
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(_message("x of shape [B, C, H, W] with H, W >= 1", list(x.shape)))

    w1 = parameters[0]
    if w1.dim() != 4 or w1.shape[0] != 2 or min(w1.shape[1:]) < 1:
        raise ValueError(_message("w1 of shape [2, K, D, Dh]", list(w1.shape)))
    _, blocks, size, hidden = w1.shape
    if x.shape[1] != blocks * size:
        channels = f"x with {blocks * size} channels for w1 of {blocks} blocks of {size} channels"
        raise ValueError(_message(channels, f"{x.shape[1]} channels"))
    shapes = ((2, blocks, size, hidden), (2, blocks, hidden), (2, blocks, hidden, size), (2, blocks, size))
    for name, tensor, shape in zip(names, parameters, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(_message(f"{name} of shape {list(shape)} for w1 of {list(w1.shape)}", list(tensor.shape)))
        if tensor.device != x.device:
            raise ValueError(_message(f"{name} on {x.device}, where x is", tensor.device))
        if tensor.dtype != w1.dtype:
            raise TypeError(_message(f"{name} of w1's dtype {w1.dtype}", tensor.dtype))
    if w1.dtype not in (x.dtype, compute_dtype(x.dtype)):
        allowed = " or ".join(dict.fromkeys((str(x.dtype), str(compute_dtype(x.dtype)))))
        raise TypeError(_message(f"parameters of {allowed} for x of {x.dtype}", w1.dtype))

    if not isinstance(sparsity_threshold, (int, float)):
        raise TypeError(_message("sparsity_threshold to be a number", type(sparsity_threshold).__name__))
    if not sparsity_threshold >= 0:  # negative, or NaN
        raise ValueError(_message("sparsity_threshold >= 0", sparsity_threshold))
    if activation not in ACTIVATIONS:
        raise ValueError(_message(f"activation to be one of {list(ACTIVATIONS)}", repr(activation)))


def _message(expected: str, got: object) -> str:
    return f"fused_aff_mixer: expected {expected}, got {got}"
