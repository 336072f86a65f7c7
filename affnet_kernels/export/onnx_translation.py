"""The fused operator in ONNX, for a `torch.onnx.export` of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from affnet_kernels import ops  # noqa: F401 - defines the operator
from affnet_kernels.export.dft import along_height, along_width

# The exporter hands over values of onnx_ir; a value's shape holds integers and, where it is dynamic, symbols.
Value = Any


def _mixer_forward(
    x: Value,  # [B, C, H, W]
    w1: Value,  # [2, K, D, Dh]
    b1: Value,  # [2, K, Dh]
    w2: Value,  # [2, K, Dh, D]
    b2: Value,  # [2, K, D]
    sparsity_threshold: Any,
    activation: Any,
    backend: Any = None,
    dynamic_threshold: Any = None,
) -> Any:  # [B, C, H, W]
    """The steps of `ExportableMixer`, with weights that the graph rearranges, which optimizers do ahead of time."""
    import onnxscript

    op: Any = onnxscript.opset18  # its annotations leave out what its operators convert
    _, C, H, W = x.shape
    if dynamic_threshold is not None or not all(isinstance(size, int) for size in (C, H, W)):
        raise ValueError(
            f"ONNX_TRANSLATIONS: expected maps of fixed C, H and W and a fixed threshold, got {list(x.shape)}; "
            "export with only the batch dynamic"
        )
    K, columns = w1.shape[1], W // 2 + 1  # K, F
    frequencies = H * columns  # N

    def product(matrix: Tensor, value: Value) -> Value:
        return op.Conv(value, op.CastLike(_constant(op, matrix[:, :, None, None]), w1))

    def layer(value: Value, weight: Value, bias: Value) -> Value:
        return op.Conv(value, _real_weight(op, weight), _real_bias(op, bias), group=K)

    analysis_w, synthesis_w = along_width(W)
    analysis_h = along_height(H)
    wide = x if x.dtype == w1.dtype else op.CastLike(x, w1)

    rows = op.Reshape(op.Transpose(wide, perm=[0, 2, 3, 1]), [-1, W, 1, C])
    rows = op.Transpose(op.Reshape(product(analysis_w, rows), [-1, H, 2, columns * C]), perm=[0, 2, 1, 3])
    planes = product(analysis_h, op.Reshape(rows, [-1, 2 * H, columns, C]))
    X = op.Transpose(op.Reshape(planes, [-1, 2 * frequencies, C]), perm=[0, 2, 1])

    hidden = _activate(op, activation, layer(op.Reshape(X, [-1, 2 * C, 1, frequencies]), w1, b1))
    P = op.Reshape(layer(hidden, w2, b2), [-1, C, 2 * frequencies])
    threshold = min(float(sparsity_threshold), torch.finfo(torch.float32).max)
    limits = (op.CastLike(_constant(op, torch.tensor(limit)), w1) for limit in (-threshold, threshold))
    M = op.Sub(P, op.Clip(P, *limits))

    Mr, Mi = op.Split(M, axis=2, num_outputs=2)
    Xr, Xi = op.Split(X, axis=2, num_outputs=2)
    real, imaginary = op.Sub(op.Mul(Mr, Xr), op.Mul(Mi, Xi)), op.Add(op.Mul(Mr, Xi), op.Mul(Mi, Xr))
    Y = op.Transpose(op.Concat(real, imaginary, axis=2), perm=[0, 2, 1])

    planes = op.Reshape(product(analysis_h.T, op.Reshape(Y, [-1, 2 * H, columns, C])), [-1, 2, H, columns * C])
    rows = product(synthesis_w, op.Reshape(op.Transpose(planes, perm=[0, 2, 1, 3]), [-1, 2 * columns, 1, C]))
    y = op.Add(op.Transpose(op.Reshape(rows, [-1, H, W, C]), perm=[0, 3, 1, 2]), wide)
    return y if x.dtype == w1.dtype else op.CastLike(y, x)


ONNX_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.affnet_kernels.mixer_forward.default: _mixer_forward
}
"""The `custom_translation_table` of `torch.onnx.export(..., dynamo=True)` for models that hold `AFFMixer`s."""


def _real_weight(
    op: Any,
    weight: Value,  # [2, K, I, O]
) -> Value:  # [(K, O, r), (I, r), 1, 1]
    _, K, inputs, outputs = weight.shape
    transposed = op.Transpose(weight, perm=[0, 1, 3, 2])
    real, imaginary = op.Gather(transposed, [0], axis=0), op.Gather(transposed, [1], axis=0)  # [1, K, O, I]
    rows = op.Concat(real, op.Neg(imaginary), axis=0), op.Concat(imaginary, real, axis=0)  # [2, K, O, I]
    stacked = op.Concat(*(op.Unsqueeze(row, [0]) for row in rows), axis=0)  # [r of O, r of I, K, O, I]
    return op.Reshape(op.Transpose(stacked, perm=[2, 3, 0, 4, 1]), [K * outputs * 2, inputs * 2, 1, 1])


def _real_bias(
    op: Any,
    bias: Value,  # [2, K, O]
) -> Value:  # [(K, O, r)]
    return op.Reshape(op.Transpose(bias, perm=[1, 2, 0]), [-1])


def _activate(
    op: Any,
    activation: str,
    v: Value,
) -> Value:
    def gelu(v: Value) -> Value:  # the exact, erf form
        half, one, root_half = (
            op.CastLike(_constant(op, torch.tensor(number, dtype=torch.float64)), v) for number in (0.5, 1, 0.5**0.5)
        )
        return op.Mul(op.Mul(half, v), op.Add(one, op.Erf(op.Mul(root_half, v))))

    return {
        "relu": op.Relu,
        "silu": lambda v: op.Mul(v, op.Sigmoid(v)),
        "gelu": gelu,
        "tanh": op.Tanh,
        "identity": lambda v: v,
    }[activation](v)


def _constant(
    op: Any,
    value: Tensor,
) -> Value:
    import onnx

    return op.Constant(value=onnx.numpy_helper.from_array(value.contiguous().numpy()))
