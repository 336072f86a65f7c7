"""Export to OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from affnet_kernels.export.program import Exported, Run, largest_error, trace
from affnet_kernels.files import replaced_file


def export_openvino(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int],
    dynamic_batch: bool = True,
) -> Exported:
    """Write a model with `AFFMixer`s as OpenVINO's intermediate representation: an ".xml" and beside it a ".bin".

    The input is images [B, C, H, W] of one size and, unless `dynamic_batch` is off, any B; the weights are float32.

    Args:
        model, size: as in `to_exportable`.
        path: of the graph, ending with ".xml"; the weights go into a file of the same stem, ending with ".bin".
        dynamic_batch: whether B is free; otherwise it is 1.

    Returns:
        The graph's path, its operators, and its error on OpenVINO's CPU device.

    Raises:
        ValueError: as in `to_exportable`, or the path is not as above.
        OSError: the path cannot be written. Nothing is left of a failed export.
        ImportError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError("export_openvino: needs openvino; pip install openvino") from error
    with replaced_file("export_openvino", path, ".xml") as file:
        converted = openvino.convert_model(trace("export_openvino", model, size, dynamic_batch))
        openvino.save_model(converted, file, compress_to_fp16=False)
        operators = {node.get_type_name() for node in converted.get_ops()}
        difference = largest_error(load_openvino(file), model, size, (1, 3) if dynamic_batch else (1,))
    return Exported(Path(path), tuple(sorted(operators)), difference)


def load_openvino(
    path: str | os.PathLike[str],
    *,
    one_thread: bool = False,
) -> Run:
    """What runs a file that `export_openvino` wrote, on the CPU in float32, where OpenVINO might choose bfloat16."""
    import openvino

    options: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32"}
    if one_thread:
        options["INFERENCE_NUM_THREADS"] = 1
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", options)
    return lambda images: list(compiled(images.cpu().numpy()).values())
