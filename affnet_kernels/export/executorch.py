"""Export to ExecuTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from affnet_kernels.export.program import Exported, Run, largest_error, trace
from affnet_kernels.files import replaced_file


def export_executorch(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int],
) -> Exported:
    """Write a model with `AFFMixer`s as an ExecuTorch program for the CPU, by its XNNPACK delegate.

    The program's method `forward` takes images [1, C, H, W] of one size.

    Args:
        model, size: as in `to_exportable`.
        path: of the file, ending with ".pte".

    Returns:
        The file's path, the operators that the program calls (`executorch_call_delegate` is XNNPACK), and its error in
        ExecuTorch's own runtime.

    Raises:
        ValueError: as in `to_exportable`, or the path is not as above.
        OSError: the path cannot be written. Nothing is left of a failed export.
        ImportError: executorch is not installed.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ImportError(f"export_executorch: needs executorch; pip install executorch ({error})") from error
    with replaced_file("export_executorch", path, ".pte") as file:
        program = trace("export_executorch", model, size, dynamic_batch=False)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        file.write_bytes(lowered.buffer)
        nodes = lowered.exported_program().graph.nodes
        operators = {getattr(node.target, "__name__", str(node.target)) for node in nodes if node.op == "call_function"}
        difference = largest_error(load_executorch(file), model, size, (1,))
    return Exported(Path(path), tuple(sorted(operators)), difference)


def load_executorch(
    path: str | os.PathLike[str],
    *,
    one_thread: bool = False,  # in this whole process
) -> Run:
    """What runs a file that `export_executorch` wrote."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if one_thread:
        portable_lib._unsafe_reset_threadpool(1)
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return lambda images: method.execute([images.cpu()])
