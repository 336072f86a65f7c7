"""Trains on the stand-in for libcuda, and prints as JSON which kernels were compiled, and in which thread.

    python -m tests.stub_driver.background

in the environment that `driver.build` returns, with an empty cache of compiled kernels.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import torch

from affnet_kernels import fused_aff_mixer
from affnet_kernels.backends import triton as backend
from affnet_kernels.backends.triton import background, device, launch
from affnet_kernels.backends.triton.compilation import one_parser_at_a_time
from tests.stub_driver.driver import activate
from tests.stub_driver.launches import FACTS

Tensors = list[torch.Tensor]
BACKGROUND = "affnet_kernels compiler"


def main() -> None:
    device.facts = lambda _: FACTS  # type: ignore[assignment]
    backend.unsupported = lambda spec: []  # type: ignore[assignment]
    activate()
    torch.set_float32_matmul_precision("high")  # one pass, which compiles in a fraction of the time
    record_compilations()
    threading.excepthook = lambda arguments: escaped.append(str(arguments.exc_value))
    report = {"by default": since(lambda: first_forward(eager, 1))["background"]}
    background.SUPPORTED = True
    with one_parser_at_a_time():
        report |= {
            "forward": first_forwards(),
            "inference": inference(),
            "error": error(),
            "forked": forked(),
            "eager": training_steps(2, wait=True),
            "at once": training_steps(3, wait=False),
            "escaped": escaped,
        }
        print(json.dumps(report), flush=True)
        compiling.set()
        eager(*tensors(9))  # and the process exits while the backward compiles


compiled: list[tuple[str, bool]] = []  # name of the kernel, and whether that was in the background
escaped: list[str] = []  # errors that ended a thread
broken: set[str] = set()  # kernels that do not compile
compiling = threading.Event()  # unset: kernels are recorded and neither compiled nor launched


def record_compilations() -> None:
    from triton import knobs

    def hook(*, fn: Any, **_: Any) -> bool:
        name = fn.name.split(".")[-1]
        compiled.append((name, threading.current_thread().name == BACKGROUND))
        if name in broken:
            raise RuntimeError(f"{name} does not compile")
        return not compiling.is_set()

    knobs.runtime.jit_cache_hook = hook


def tensors(width: int, parameters_need_grad: bool = True) -> Tensors:
    """x and the parameters; every width has kernels of its own."""
    shapes = (2, 2, 4, 4), (2, 2, 4), (2, 2, 4, 4), (2, 2, 4)
    parameters = [torch.randn(shape, requires_grad=parameters_need_grad) for shape in shapes]
    return [torch.randn(2, 8, 4, width, requires_grad=True), *parameters]


def eager(*arguments: torch.Tensor) -> torch.Tensor:
    return fused_aff_mixer(*arguments, backend="triton")


def operator(*arguments: torch.Tensor) -> torch.Tensor:
    return torch.ops.affnet_kernels.mixer_forward(*arguments, 0.01, "relu", "triton")


def wait_for_background() -> None:
    for thread in threading.enumerate():
        if thread.name == BACKGROUND:
            thread.join()


def since(step: Callable[[], Any]) -> dict[str, list[str]]:
    """What a step compiles, itself and in the background."""
    before = len(compiled)
    step()
    new = compiled[before:]
    return {
        "itself": sorted(name for name, in_background in new if not in_background),
        "background": sorted(name for name, in_background in new if in_background),
    }


def training_steps(width: int, wait: bool) -> dict[str, dict[str, list[str]]]:
    """What two training steps compile; with `wait`, the backward only begins when the background is done."""
    arguments = tensors(width)
    y: list[torch.Tensor] = []

    def forward() -> None:
        y.append(eager(*arguments))
        if wait:
            wait_for_background()

    def backward() -> None:
        y[-1].sum().backward()
        wait_for_background()

    compiling.set()
    names = ("forward", "backward", "second forward", "second backward")
    report = {name: since(step) for name, step in zip(names, 2 * (forward, backward), strict=True)}
    compiling.clear()
    return report


def first_forward(call: Callable[..., torch.Tensor], width: int, parameters_need_grad: bool = True) -> None:
    call(*tensors(width, parameters_need_grad))
    wait_for_background()


def first_forwards() -> dict[str, list[str]]:
    """What a first forward compiles in the background, by the way in which it is called."""
    compiled_call = torch.compile(eager, backend="aot_eager", fullgraph=True)
    calls = {
        "operator": lambda: first_forward(operator, 4),
        "torch.compile": lambda: first_forward(compiled_call, 5),
        "torch.func": lambda: first_forward(transformed, 8),
        "frozen parameters": lambda: first_forward(eager, 6, parameters_need_grad=False),
    }
    return {name: since(call)["background"] for name, call in calls.items()}


def transformed(*arguments: torch.Tensor) -> torch.Tensor:
    """One gradient per image, for which the backward has more blocks than the forward."""

    def loss(x: torch.Tensor, parameters: Tensors) -> torch.Tensor:
        return eager(x[None], *parameters).sum()

    x, *parameters = (tensor.detach() for tensor in arguments)
    return torch.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))(x, parameters)[0]


def inference() -> dict[str, list[str]]:
    """What calls that autograd does not record compile in the background; then what one that it records does."""
    arguments = tensors(7)

    def unrecorded() -> None:
        with torch.no_grad():
            eager(*arguments)
            operator(*arguments)
        with torch.inference_mode():
            eager(*arguments)
        eager(*(tensor.detach() for tensor in arguments))
        operator(*(tensor.detach() for tensor in arguments))
        wait_for_background()

    def recorded() -> None:
        eager(*arguments)
        wait_for_background()

    return {"inference": since(unrecorded)["background"], "training after it": since(recorded)["background"]}


def error() -> dict[str, Any]:
    """Where the compiler's error is raised, and whether the next backward tries again."""
    broken.add("backward_kernel")
    y = eager(*tensors(10))
    wait_for_background()
    try:
        y.sum().backward()
        raised = ""
    except RuntimeError as caught:
        raised = str(caught)
    broken.clear()
    y = eager(*tensors(10))
    return {"raised": raised, "again": since(lambda: y.sum().backward())["itself"]}


def forked() -> bool:
    """Whether a child process is free of the locks that its parent held when it forked."""
    with launch.compilation_lock("backward_kernel", ()):
        child = os.fork()
        if child == 0:
            os._exit(not launch.compilation_lock("backward_kernel", ()).acquire(timeout=10))
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main()
