"""The exchange of official-style mixers inside a model for `AFFMixer`."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import nn

from affnet_kernels.activations import ACTIVATIONS
from affnet_kernels.capture import captured, named_modules, refuse_captured
from affnet_kernels.comparison import difference, plain_defaults
from affnet_kernels.modules import HOOKS, PARAMETERS, AFFMixer, activation_of, parameter_shapes


class ReplacedMixers(dict[str, nn.Module]):
    """What `replace_mixers` took out of a model: qualified name -> the original module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def undo(self) -> None:
        """Put the original modules back, with the parameters, mode and hooks that their replacements have now.

        Raises:
            ValueError: a replacement is no longer where it was put, or something has captured it since. The model is
                then unchanged.
        """
        present = {name: module for name, module in named_modules(self._model).items() if name in self}
        for name in self:
            if not isinstance(present.get(name), AFFMixer):
                got = type(present[name]).__name__ if name in present else "nothing"
                raise ValueError(f"undo: expected the AFFMixer that replace_mixers put at {name}, got {got}")
        refuse_captured("undo", self._model, present, lambda module: False)
        for name, original in self.items():
            _hand_over(present[name], original)
            self._model.set_submodule(name, original)
        self.clear()


def replace_mixers(
    model: nn.Module,
    *,
    check: bool = True,
) -> ReplacedMixers:
    """Swap every official-style mixer inside `model` for an `AFFMixer`, in place.

    An official-style mixer is a module of any class that owns exactly the parameters w1, b1, w2, b2 in the official
    shapes. The replacement takes over the very parameters (an optimizer goes on working), device, dtype, train or
    eval mode and hooks; the model's state-dict keys stay. Replace before anything captures the modules: before
    torch.compile, offloading, FSDP and tracing. A mixer with a parametrized parameter (weight_norm, pruning) is left
    as it is, with a warning.

    Args:
        model: somebody's network; changed in place. It must not be a mixer itself.
        check: compare what each mixer's class computes with the filter first, in float32 on the CPU and for random
            parameters; the model's own tensors and hooks are not touched. AFNO, for one, has the same parameters and
            computes something else.

    Returns:
        The replaced modules by qualified name; its `undo()` puts them back.

    Raises:
        ValueError: there is no such mixer, one has an activation or option that is not supported, one computes
            something else, or something has captured one. The model is then unchanged.
    """
    modules = named_modules(model)
    found = {name: module for name, module in modules.items() if _is_official_style(module)}
    parametrized = {name: reason for name, module in modules.items() if (reason := _parametrized(module))}
    refuse_captured("replace_mixers", model, found, _is_official_style)
    if not found:
        raise ValueError(_nothing_to_replace(model, parametrized))
    if "" in found:
        raise ValueError(
            f"replace_mixers: expected a model that contains mixers, got a mixer, {type(model).__name__}; "
            "make an AFFMixer and load its state dict"
        )
    replacements = {id(module): _replacement(name, module, check) for name, module in found.items()}
    replaced = ReplacedMixers(model)
    for name, module in found.items():
        _hand_over(module, replacements[id(module)])
        model.set_submodule(name, replacements[id(module)])
        replaced[name] = module
    for name, reason in parametrized.items():
        warnings.warn(f"replace_mixers: left {name} as it is: {reason}", stacklevel=2)
    return replaced


def _is_official_style(
    module: nn.Module,
) -> bool:
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    return not isinstance(module, AFFMixer) and set(own) == set(PARAMETERS) and _has_mixer_shapes(own)


def _has_mixer_shapes(
    tensors: dict[str, Any],
) -> bool:
    if tensors["w1"].dim() != 4:
        return False
    two, blocks, size, hidden = tensors["w1"].shape
    shapes = parameter_shapes(blocks, size, hidden)
    return two == 2 and all(tensors[name].shape == shape for name, shape in zip(PARAMETERS, shapes, strict=True))


def _parametrized(
    module: nn.Module,
) -> str:
    """Which parameters of a mixer are computed from others, in words; "" if none, or if it is not a mixer.

    `torch.nn.utils.parametrize` keeps the originals in `parametrizations.w1`; what preceded it, in w1_g or w1_orig.
    """
    own = {name for name, parameter in module._parameters.items() if parameter is not None}
    parametrizations = dict(getattr(module, "parametrizations", nn.Module()).named_children())
    computed = [
        name for name in PARAMETERS if name in parametrizations or not own.isdisjoint({f"{name}_g", f"{name}_orig"})
    ]
    if isinstance(module, AFFMixer) or not computed or not set(PARAMETERS) <= own.union(computed):
        return ""
    if not _has_mixer_shapes({name: getattr(module, name) for name in PARAMETERS}):
        return ""
    return (
        f"{' and '.join(computed)} of {type(module).__name__} is parametrized (weight_norm, pruning or the like); "
        "remove the parametrization, replace, and parametrize the AFFMixer"
    )


def _nothing_to_replace(
    model: nn.Module,
    parametrized: dict[str, str],
) -> str:
    got = f"{type(model).__name__} without any"
    if already := sum(isinstance(module, AFFMixer) for module in model.modules()):
        got = f"{type(model).__name__}, whose mixers are already replaced ({already} AFFMixer)"
    if parametrized:
        name, reason = next(iter(parametrized.items()))
        got = f"{name}: {reason}"
    elif reasons := [reason for module in named_modules(model).values() if (reason := captured(module))]:
        got = f"{type(model).__name__} without any: {reasons[0]}"
    return (
        f"replace_mixers: expected a model with modules that own the parameters {', '.join(PARAMETERS)} in the "
        f"shapes [2, K, D, Dh], [2, K, Dh], [2, K, Dh, D], [2, K, D], got {got}"
    )


def _replacement(
    name: str,
    module: nn.Module,
    check: bool,
) -> AFFMixer:
    """An `AFFMixer` that computes what `module` does; its parameters are still its own."""
    _, blocks, size, hidden = module.get_parameter("w1").shape
    where = f"replace_mixers: {name} ({type(module).__name__})"
    activations = {_activation(where, child) for child in module.children()} or {"relu"}
    if len(activations) > 1:
        raise ValueError(f"{where}: expected one activation, got {sorted(activations)}")
    threshold = getattr(module, "sparsity_threshold", 0.01)
    with plain_defaults():
        mixer = AFFMixer(blocks * size, blocks, hidden // size, threshold, activations.pop(), device="meta")
    reason = difference(module, mixer) if check else _suspicious(module)
    if reason:
        raise ValueError(f"{where}: expected a module that computes the adaptive frequency filter, got {reason}")
    return mixer


def _suspicious(
    module: nn.Module,
) -> str:
    """Why `module` must be compared before it is replaced; "" if it looks like an adaptive frequency filter."""
    names = (base.__name__ for base in type(module).__mro__)
    name = next((name for name in names if name.startswith("AFNO")), "AFNO2D_channelfirst")
    if "channelfirst" not in name.lower():
        return "AFNO by its name, which is another operator with the same parameters; check=True compares them"
    fraction = getattr(module, "hard_thresholding_fraction", 1)
    if fraction != 1:
        return f"hard_thresholding_fraction={fraction}, which may drop frequencies; check=True finds out"
    return ""


def _activation(
    where: str,
    child: nn.Module,
) -> str:
    name = activation_of(child)
    if name is None:
        known = ", ".join(activation.module.__name__ for activation in ACTIVATIONS.values())
        raise ValueError(f"{where}: expected an activation without parameters, out of {known}, got {child}")
    return name


def _hand_over(
    source: nn.Module,
    target: nn.Module,
) -> None:
    """Give `target` the parameters, mode and hooks of `source`."""
    target._parameters.clear()
    target._parameters.update(source._parameters)  # in the source's order, by which optimizers number them
    target.train(source.training)
    for hooks in HOOKS:
        if hooks in vars(source):
            setattr(target, hooks, vars(source)[hooks])
            _rebind(vars(source)[hooks], target)


def _rebind(
    hooks: Any,
    target: nn.Module,
) -> None:
    """Let hooks that are given their module as an argument get `target`, in place: handles refer to the dict."""
    for hook in hooks.values() if isinstance(hooks, dict) else ():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(target)
