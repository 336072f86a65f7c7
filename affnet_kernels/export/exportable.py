"""A model whose mixers consist of operations that every runtime has."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from affnet_kernels.capture import named_modules, refuse_captured
from affnet_kernels.export.mixer import ExportableMixer
from affnet_kernels.export.norm import ExportableNorm
from affnet_kernels.modules import AFFMixer

Model = TypeVar("Model", bound=nn.Module)

# The hooks that run when a module is called; those of the state dict do not matter here.
CALL_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def to_exportable(
    model: Model,
    *,
    size: int | Sequence[int],
) -> Model:
    """A copy of a model in eval mode, its mixers made of matrix products and elementwise operations.

    No FFT, complex number or custom operator is left of them, so that exporters and runtimes which know none of these
    take the model. Gradients flow as in every module. The copy takes images of one size, which its mixers check, and
    any batch; the parameters of its mixers are others than the model's, so it is not for further training. A GroupNorm
    of one group is written out too, since runtimes compute their own less accurately.

    Args:
        model: any module that has `AFFMixer`s and that images [B, C, H, W] are the only input of; it stays as it is.
            Official networks get `AFFMixer`s by `replace_mixers`.
        size: of the images: H and W, or one number for both; or C, H and W where C is not 3.

    Returns:
        The copy. A mixer that does not run on such images in eval mode stays as it is in it.

    Raises:
        ValueError: no mixer runs, one runs on maps of several sizes, has hooks, an activation that `AFFMixer` does not
            support or a forward of its own, or torch.compile, FSDP or the like has captured it.
    """
    shape = image_shape("to_exportable", size)
    found = {name: module for name, module in named_modules(model).items() if isinstance(module, AFFMixer)}
    if not found:
        raise ValueError(
            f"to_exportable: expected a model with AFFMixers, got {type(model).__name__} without any; "
            "replace_mixers puts them in the place of official ones"
        )
    refuse_captured("to_exportable", model, cast(dict[str, nn.Module], found), lambda m: isinstance(m, AFFMixer))
    for name, mixer in found.items():
        _refuse(name, mixer)

    exportable = copy.deepcopy(model).eval()
    mixers = {name: module for name, module in named_modules(exportable).items() if isinstance(module, AFFMixer)}
    sizes = _map_sizes(exportable, mixers, shape)
    replacements: dict[int, ExportableMixer] = {}  # by the mixer's identity, as a mixer may have several names
    for name, mixer in mixers.items():
        if id(mixer) not in sizes:
            continue
        replacement = replacements.setdefault(id(mixer), ExportableMixer(mixer, sizes[id(mixer)]))
        if not name:
            return cast(Model, replacement.eval())
        exportable.set_submodule(name, replacement.eval())
    for name, module in list(exportable.named_modules()):
        if type(module) is nn.GroupNorm and module.num_groups == 1 and name:
            exportable.set_submodule(name, ExportableNorm(module))
    return exportable


def image_shape(
    caller: str,
    size: int | Sequence[int],
) -> tuple[int, int, int]:  # C, H, W
    """The shape of an image, of a `size` as in `to_exportable`."""
    numbers = (3, size, size) if isinstance(size, int) else (3, *size) if len(size) == 2 else tuple(size)
    if len(numbers) != 3 or not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise ValueError(f"{caller}: expected size as H and W, or C, H and W, all of them >= 1, got {size}")
    return numbers


def example_images(
    model: nn.Module,
    shape: tuple[int, ...],  # B, C, H, W
) -> Tensor:  # [B, C, H, W]
    """Random images of the model's dtype, on its device."""
    like = next((tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()), None)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images if like is None else images.to(like)


def _refuse(
    name: str,
    mixer: AFFMixer,
) -> None:
    """Raise ValueError where an `ExportableMixer` would not do what a call of `mixer` does."""
    where = f"to_exportable: {name or 'the model'} ({type(mixer).__name__})"
    if type(mixer).forward is not AFFMixer.forward:
        raise ValueError(f"{where}: expected AFFMixer's own forward, got another one, which would not run")
    if any(getattr(mixer, hooks) for hooks in CALL_HOOKS):
        raise ValueError(f"{where}: expected a mixer without hooks, got one with hooks that would not run; remove them")
    mixer.activation  # noqa: B018 - raises where it is not one of those that are supported


def _map_sizes(
    model: nn.Module,
    mixers: dict[str, AFFMixer],
    shape: tuple[int, int, int],  # C, H, W
) -> dict[int, tuple[int, int]]:  # H, W
    """The size of the maps that each mixer gets, by its identity."""
    sizes: dict[int, tuple[int, int]] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        height, width = (inputs[0] if inputs else named["x"]).shape[-2:]
        earlier = sizes.setdefault(id(module), (height, width))
        if earlier != (height, width):
            raise ValueError(
                f"to_exportable: expected {name} to get maps of one size, got {earlier[0]} x {earlier[1]} "
                f"and {height} x {width}"
            )

    unique = {id(mixer): (name, mixer) for name, mixer in mixers.items()}
    handles = [
        mixer.register_forward_pre_hook(partial(record, name), with_kwargs=True) for name, mixer in unique.values()
    ]
    try:
        with torch.no_grad():
            model(example_images(model, (1, *shape)))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"to_exportable: expected a model of images {list(shape)}, got {type(model).__name__}, "
            f"which fails on them: {reason}"
        ) from error
    for handle in handles:
        handle.remove()
    if not sizes:
        raise ValueError(f"to_exportable: expected mixers that run, got none that does on images {list(shape)}")
    return sizes
