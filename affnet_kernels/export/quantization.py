"""Exported ONNX files in int8, their mixers in float32."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from affnet_kernels.export.onnx import load_onnx
from affnet_kernels.export.program import Exported, Run
from affnet_kernels.files import replaced_file

# The matrices of an ExportableMixer, by the last part of their names.
MIXER_WEIGHTS = {"analysis_w", "analysis_h", "w1", "w2", "synthesis_h", "synthesis_w"}


def quantize_onnx(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    calibration: Iterable[Tensor],  # each [B, C, H, W]
) -> Exported:
    """Write a file of `export_onnx` with its layers in int8 from the first mixer on, by onnxruntime's quantiser.

    Weights of convolutions and linear layers get a scale for each output channel; their inputs and outputs are uint8,
    with one range for each tensor, found on the images of `calibration`. The few layers before the first mixer stay in
    float32: in int8 they would be slower, as their channels are few, and lose the most accuracy. So do mixers and
    norms: in int8 they would save little, and add as much error as all layers, more on larger maps. The operators are
    standard (QDQ). On x86 without VNNI, onnxruntime's int8 products may saturate; check the accuracy there.

    Args:
        path_in: of a float32 file that `export_onnx` wrote.
        path_out: of the int8 file, ending with ".onnx".
        calibration: batches of some dozens of images in all, prepared as the network's images are.

    Returns:
        The int8 file's path, its operators, and its error: from the float32 file's outputs, on these images.

    Raises:
        ValueError: `path_in` is no such file, or the images are none, not finite or of another shape.
        TypeError: they are not float32 tensors.
        OSError: a path cannot be read or written. Nothing is left of a failed quantisation.
        ImportError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise ImportError("quantize_onnx: needs onnx and onnxruntime; pip install onnx onnxruntime") from error
    with replaced_file("quantize_onnx", path_out, ".onnx") as file:
        proto = _read(path_in)
        layers = _layers(proto)
        images = list(_images(calibration, proto))
        _share_inputs_of_silu(proto, layers)
        with _quiet():
            quantize_static(
                proto,
                file,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=layers,
            )
        quantised = onnx.load(file)
        onnx.checker.check_model(quantised, full_check=True)
        difference = _error(path_in, file, images)
    return Exported(Path(path_out), tuple(sorted({node.op_type for node in quantised.graph.node})), difference)


class _Reader:
    """Images as onnxruntime's calibrator asks for them."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image.numpy()}


def _read(path: str | os.PathLike[str]) -> Any:
    import onnx

    if not Path(path).is_file():
        raise FileNotFoundError(f"quantize_onnx: expected a file that export_onnx wrote, got {path}")
    expected = f"quantize_onnx: expected a float32 file that export_onnx wrote, got {path}"
    try:
        proto = onnx.load(path)
    except OSError:
        raise
    except Exception as error:  # protobuf's own, which onnx does not export
        raise ValueError(f"{expected}, which is no ONNX file") from error
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        raise ValueError(f"{expected}, which is quantised")
    if not any(_last(tensor.name) == "analysis_w" for tensor in proto.graph.initializer):
        raise ValueError(f"{expected}, which has no mixers")
    if proto.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ValueError(f"{expected}, which takes other images")
    return proto


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _layers(proto: Any) -> list[str]:
    """The names of the nodes after the first mixer's start that multiply by a weight, mixers' excepted."""
    nodes = list(proto.graph.node)
    first = next(index for index, node in enumerate(nodes) if any(_last(name) == "analysis_w" for name in node.input))
    weights = {tensor.name for tensor in proto.graph.initializer if _last(tensor.name) not in MIXER_WEIGHTS}
    return [
        node.name for node in nodes[first:] if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights
    ]


def _share_inputs_of_silu(proto: Any, layers: list[str]) -> None:
    """Let Sigmoid and Mul of a layer's SiLU read it through one Max, which does nothing.

    onnxruntime gives each reader of a quantised tensor a DequantizeLinear of its own. Then Sigmoid and Mul no longer
    have the same input, and it does not fuse them, which costs more time than int8 saves.
    """
    from onnx.helper import make_node

    outputs = {node.output[0] for node in proto.graph.node if node.name in layers}
    readers = Counter(name for node in proto.graph.node for name in node.input)
    gates = {
        node.output[0]: node
        for node in proto.graph.node
        if node.op_type == "Sigmoid" and node.input[0] in outputs and readers[node.output[0]] == 1
    }
    nodes: list[Any] = []
    for node in proto.graph.node:
        gate = next((gates[name] for name in node.input if name in gates), None)
        if node.op_type == "Mul" and gate is not None and gate.input[0] in node.input:
            layer = gate.input[0]
            shared = make_node("Max", [layer], [f"{layer}_shared"], name=f"{node.name}_shared")
            nodes.insert(nodes.index(gate), shared)
            node.input[list(node.input).index(layer)] = gate.input[0] = shared.output[0]
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _images(
    calibration: Iterable[Tensor],  # each [B, C, H, W]
    proto: Any,
) -> Iterator[Tensor]:  # [1, C, H, W]
    shape = [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    count = 0
    for batch in calibration:
        if not isinstance(batch, Tensor) or batch.dtype != torch.float32:
            got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise TypeError(f"quantize_onnx: expected calibration as float32 tensors, got {got}")
        if batch.dim() != 4 or list(batch.shape[1:]) != shape:
            expected = ", ".join(map(str, ["B", *shape]))
            raise ValueError(f"quantize_onnx: expected images [{expected}] for calibration, got {list(batch.shape)}")
        if not batch.isfinite().all():
            raise ValueError("quantize_onnx: expected finite images for calibration, got some with infinity or NaN")
        for image in batch.cpu():
            count += 1
            yield image[None]
    if not count:
        raise ValueError("quantize_onnx: expected images for calibration, got none")


def _error(
    path: str | os.PathLike[str],
    quantised: Path,
    images: list[Tensor],  # each [1, C, H, W]
) -> float:
    """The largest absolute difference of the quantised file's outputs."""
    expected, got = (cast(Run, load_onnx(file)) for file in (path, quantised))  # onnxruntime has been imported
    return max(float(abs(a - b).max()) for image in images for a, b in zip(expected(image), got(image), strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to optimise the graph before, which would rename the mixers' weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
