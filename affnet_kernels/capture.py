"""What keeps a swap of modules from reaching the code that runs them."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from affnet_kernels.modules import HOOKS

# Classes that capture the modules or parameters they are given, by name: importing them would be slow.
_CAPTURING = {
    "OptimizedModule": "torch.compile has captured it; replace before compile",
    "FullyShardedDataParallel": "FSDP has sharded it; replace before FSDP",
    "FSDPModule": "fully_shard has captured its parameters; replace before fully_shard",
    "ScriptModule": "TorchScript has captured it; replace before torch.jit.trace or torch.jit.script",
}


def named_modules(
    model: nn.Module,
) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))


def refuse_captured(
    caller: str,
    model: nn.Module,
    found: dict[str, nn.Module],  # by qualified name
    is_mixer: Callable[[nn.Module], bool],
) -> None:
    """Raise ValueError where a module put in the place of one in `found` would not be the one that runs."""
    modules = named_modules(model)
    for name, module in found.items():
        parts = name.split(".") if name else []
        path = {".".join(parts[:depth]): modules[".".join(parts[:depth])] for depth in range(len(parts) + 1)}
        expected = f"{caller}: expected mixers that a swap reaches, got {name or 'one'} ({type(module).__name__})"
        for holder, parent in path.items():
            if reason := captured(parent):
                within = "" if holder == name else f", part of {holder or 'the model'} ({type(parent).__name__})"
                raise ValueError(f"{expected}{within}: {reason}")
        if reason := _bypassed(module):
            raise ValueError(f"{expected}: {reason}")
    for place, module in _outside_of_submodules(modules, found, is_mixer):
        raise ValueError(
            f"{caller}: expected mixers that are held as submodules only, got {type(module).__name__} at {place}, "
            "which a swap does not reach; hold it in an nn.ModuleList or nn.ModuleDict, or look it up when it is called"
        )


def captured(
    module: nn.Module,
) -> str:
    """Why what runs `module` does not notice a swap of it, or of a module inside it; "" if it does."""
    for base in type(module).__mro__:
        if base.__name__ in _CAPTURING:
            return _CAPTURING[base.__name__]
    if getattr(vars(module).get("forward"), "__module__", "") == "torch.cuda.graphs":
        return "a CUDA graph has captured it; replace before make_graphed_callables"
    if vars(module).get("_compiled_call_impl") is not None:
        return "Module.compile has captured it; replace before compile"
    return ""


def _bypassed(
    module: nn.Module,
) -> str:
    """Why a call of `module` does not just run its class's forward; "" if it does."""
    state = vars(module)
    if "_hf_hook" in state:
        return "accelerate has put a forward of its own on it; replace before offload or dispatch"
    if "forward" in state:
        return "its forward is set on the instance and would be lost; replace before setting it"
    if type(module).forward is nn.Module.forward:
        return "it only holds parameters, its forward was traced into a graph; replace before tracing or export"
    if any(base.__name__ == "DTensor" for p in module.parameters() for base in type(p).__mro__):
        return "its parameters are DTensors; replace before fully_shard or distribute_module"
    if module._buffers:
        return f"a swap would lose its buffers: {', '.join(module._buffers)}"
    for name, child in module.named_children():
        if "forward" in vars(child) or any(vars(child).get(hooks) for hooks in HOOKS):
            return f"hooks on its {name} would not run, as the fused operator does not call it; remove them first"
    return ""


def _outside_of_submodules(
    modules: dict[str, nn.Module],
    found: dict[str, nn.Module],
    is_mixer: Callable[[nn.Module], bool],
) -> Iterator[tuple[str, nn.Module]]:
    """Where mixers are held in plain attributes: lists, dicts, bound methods, partials, closures."""
    registered = {id(module) for module in modules.values()}
    swapped = {id(module) for module in found.values()}
    seen: set[int] = set()
    for name, module in modules.items():
        if id(module) in swapped or id(module) in seen:
            continue
        seen.add(id(module))
        waiting = deque((f"{name or type(module).__name__}.{key}", value) for key, value in _attributes(module))
        while waiting:
            place, value = waiting.popleft()
            if id(value) in swapped:
                yield place, value
            elif not isinstance(value, _HOLDERS) or id(value) in seen or id(value) in registered:
                continue
            elif isinstance(value, nn.Module) and is_mixer(value):
                yield place, value
            else:
                seen.add(id(value))
                waiting.extend((place + step, part) for step, part in _parts(value))


_HOLDERS = (
    nn.Module,
    list,
    tuple,
    dict,
    set,
    frozenset,
    deque,
    functools.partial,
    types.MethodType,
    types.FunctionType,
)


def _attributes(
    module: nn.Module,
) -> Iterator[tuple[str, Any]]:
    """What a module holds beside its submodules, parameters and hooks."""
    registries = ("_modules", "_parameters", "_buffers", *HOOKS)
    return ((key, value) for key, value in vars(module).items() if key not in registries)


def _parts(
    holder: Any,
) -> Iterator[tuple[str, Any]]:
    """What one of `_HOLDERS` holds, and how it is reached."""
    if isinstance(holder, nn.Module):  # one that no module has registered
        yield from ((f".{key}", value) for key, value in (*_attributes(holder), *holder._modules.items()))
    elif isinstance(holder, dict):
        yield from ((f"[{key!r}]", value) for key, value in holder.items())
    elif isinstance(holder, functools.partial):
        yield from ((".func", holder.func), (".args", holder.args), (".keywords", holder.keywords))
    elif isinstance(holder, types.MethodType):
        yield ".__self__", holder.__self__
    elif isinstance(holder, types.FunctionType):
        yield from ((".__defaults__", holder.__defaults__), (".__kwdefaults__", holder.__kwdefaults__))
        variables = zip(holder.__code__.co_freevars, holder.__closure__ or (), strict=True)
        yield from ((f", closed-over {variable}", _contents(cell)) for variable, cell in variables)
    else:
        yield from ((f"[{index}]", value) for index, value in enumerate(holder))


def _contents(
    cell: types.CellType,
) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # its variable is not assigned
        return None
