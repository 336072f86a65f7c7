"""Export to AOTInductor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from affnet_kernels.export.program import Exported, Run, largest_error, trace
from affnet_kernels.files import replaced_file


def export_aoti(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int],
    dynamic_batch: bool = True,
) -> Exported:
    """Compile a model with `AFFMixer`s ahead of time, by AOTInductor, into a package that PyTorch loads.

    `torch._inductor.aoti_load_package` runs it in Python, `torch::inductor::AOTIModelPackageLoader` in C++; neither
    needs this project. It is compiled for the model's device and this machine's instruction set. The input is images
    [B, C, H, W] of one size and, unless `dynamic_batch` is off, any B.

    Args:
        model, size: as in `to_exportable`.
        path: of the package, ending with ".pt2".
        dynamic_batch: whether B is free; otherwise it is 1.

    Returns:
        The package's path, the operators of the program that was compiled, and the package's error.

    Raises:
        ValueError: as in `to_exportable`, or the path is not as above.
        OSError: the path cannot be written. Nothing is left of a failed export.
    """
    with replaced_file("export_aoti", path, ".pt2") as file:
        program = trace("export_aoti", model, size, dynamic_batch)
        with torch.no_grad():  # frozen, weights are in oneDNN's layout: AFFNet-T takes 0.72 of the time
            torch._inductor.aoti_compile_and_package(
                program, package_path=os.fspath(file), inductor_configs={"freezing": True}
            )
        operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        difference = largest_error(load_aoti(file), model, size, (1, 3) if dynamic_batch else (1,))
    return Exported(Path(path), tuple(sorted(operators)), difference)


def load_aoti(
    path: str | os.PathLike[str],
    *,
    one_thread: bool = False,  # torch.set_num_threads decides
) -> Run:
    """What runs a file that `export_aoti` wrote."""
    return torch._inductor.aoti_load_package(os.fspath(path))
