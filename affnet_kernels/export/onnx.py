"""Export to ONNX."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affnet_kernels.export.program import Exported, Run, largest_error, trace
from affnet_kernels.files import replaced_file

OPSET = 18


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int],
    opset: int = OPSET,
    dynamic_batch: bool = True,
) -> Exported:
    """Write a model with `AFFMixer`s as one ONNX file of standard operators, none of them a DFT.

    The file's input is `images` [B, C, H, W], of one size and, unless `dynamic_batch` is off, any B from 1 up; if it
    has one output, that is `output`.

    Args:
        model, size: as in `to_exportable`.
        path: of the file, ending with ".onnx".
        opset: of the standard operators; 18, which runtimes know since early 2023, or later.
        dynamic_batch: whether B is free; otherwise it is 1.

    Returns:
        The file's path, its operators, and its error in onnxruntime if that is installed.

    Raises:
        ValueError: as in `to_exportable`, or the path or opset is not as above.
        OSError: the path cannot be written. Nothing is left of a failed export.
        ImportError: onnx or onnxscript is not installed.
    """
    if opset < OPSET:
        raise ValueError(f"export_onnx: expected opset >= {OPSET}, got {opset}")
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ImportError("export_onnx: needs onnx and onnxscript; pip install onnx onnxscript") from error
    with replaced_file("export_onnx", path, ".onnx") as file:
        program = trace("export_onnx", model, size, dynamic_batch)
        with _quiet():
            torch.onnx.export(
                program,
                f=file,
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=["output"] if len(program.graph_signature.user_outputs) == 1 else None,
                external_data=False,
                verbose=False,
            )
        proto = onnx.load(file)
        _tidy(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, file)
        operators = tuple(sorted({node.op_type for node in _nodes(proto)}))
        run = load_onnx(file)
        difference = largest_error(run, model, size, (1, 3) if dynamic_batch else (1,)) if run else None
    return Exported(Path(path), operators, difference)


def load_onnx(
    path: str | os.PathLike[str],
    *,
    one_thread: bool = False,
) -> Run | None:
    """What runs a file that `export_onnx` wrote; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(one_thread)  # 0 leaves the choice to onnxruntime
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.cpu().numpy()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not needed and on its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tidy(proto: Any) -> None:
    """Make old runtimes take the file, name the batch, and remove the stack traces that the exporter notes at nodes."""
    import onnx

    proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import))
    for part in (*_nodes(proto), *proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.functions):
        del part.metadata_props[:]
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # "" for a fixed batch
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if symbol and symbol in axis.dim_param:
                axis.dim_param = axis.dim_param.replace(symbol, "batch")


def _nodes(proto: Any) -> Iterator[Any]:
    """The nodes of the graph and of the functions that it calls."""
    yield from proto.graph.node
    for function in proto.functions:
        yield from function.node
