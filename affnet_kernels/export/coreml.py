"""Export to Core ML."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from affnet_kernels.export.program import Exported, Run, largest_error, trace
from affnet_kernels.files import replaced_file


def export_coreml(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int],
    half: bool = False,
) -> Exported:
    """Write a model with `AFFMixer`s as a Core ML package, an "mlprogram" for iOS 15 and later.

    Its input is `images` [1, C, H, W], of one size. The conversion runs on every system, predictions need a Mac.

    Args:
        model, size: as in `to_exportable`.
        path: of the package, a folder, ending with ".mlpackage".
        half: compute in float16, which the Neural Engine needs; otherwise in float32.

    Returns:
        The package's path, its operators, and on a Mac its error.

    Raises:
        ValueError: as in `to_exportable`, or the path is not as above.
        OSError: the path cannot be written. Nothing is left of a failed export.
        ImportError: coremltools is not installed.
    """
    try:
        import coremltools
    except ImportError as error:
        raise ImportError("export_coreml: needs coremltools; pip install coremltools") from error
    with replaced_file("export_coreml", path, ".mlpackage") as folder:
        program = trace("export_coreml", model, size, dynamic_batch=False).run_decompositions({})
        precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
        converted = coremltools.convert(
            program,
            inputs=[coremltools.TensorType(name="images", shape=tuple(program.example_inputs[0][0].shape))],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS15,
        )
        converted.save(os.fspath(folder))
        functions = converted.get_spec().mlProgram.functions.values()
        operators = {operation.type for function in functions for operation in _operations(function)}
        run = load_coreml(folder)
        difference = largest_error(run, model, size, (1,)) if run else None
    return Exported(Path(path), tuple(sorted(operators)), difference)


def load_coreml(
    path: str | os.PathLike[str],
    *,
    one_thread: bool = False,  # Core ML has no say in it
) -> Run | None:
    """What runs a package that `export_coreml` wrote, on a Mac; elsewhere None."""
    if sys.platform != "darwin":
        return None
    import coremltools

    package = coremltools.models.MLModel(os.fspath(path))
    return lambda images: list(package.predict({"images": images.cpu().numpy()}).values())


def _operations(function: Any) -> Iterator[Any]:
    for block in function.block_specializations.values():
        yield from block.operations
