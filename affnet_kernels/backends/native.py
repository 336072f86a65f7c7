"""The backends "cpu" and "cuda", over the compiled extension `affnet_kernels._C`."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from affnet_kernels.spec import Gradients, MixerSpec, Parameters

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps . (in the source folder)"
SLOWER = "CPU tensors run on the slower reference"


class KernelPath(NamedTuple):
    """Which of its two paths the backend "cuda" takes for a call."""

    name: str  # "one-launch", or "planned": cuFFT, and one kernel for the map between its transforms
    why: str  # why it is planned; empty for one launch


class Native:
    """One device type of the extension. The operators are C++; this says when they can run."""

    def __init__(
        self,
        name: str,  # the backend's name, and the device type it serves
        extension: Any,  # the module `_C`, or None
        why_not: str,  # why `extension` is None
    ) -> None:
        self.NAME = name
        self._extension = extension
        self._why_not = why_not

    def unsupported(
        self,
        spec: MixerSpec | None,
    ) -> list[str]:
        reasons = []
        if self._extension is None:
            reasons.append(self._why_not)
        elif self.NAME == "cuda" and not self._extension.build_info()["cuda"]:
            reasons.append(f"the extension was built without CUDA; rebuild it with FORCE_CUDA=1 {REBUILD}")
        if spec is None:
            if self.NAME == "cuda" and not torch.cuda.is_available():
                reasons.append("no CUDA device is available")
            return reasons
        if self.NAME == "cuda" and self._extension is not None:
            reasons += beyond_limits(spec, self._extension.cuda_limits())
        if spec.device.type != self.NAME:
            reasons.append(f"expected a tensor on {self.NAME}, got one on {spec.device.type}")
        elif self.NAME == "cuda" and not reasons and self._extension is not None:
            try:
                capability = torch.cuda.get_device_capability(spec.device)
            except (AssertionError, RuntimeError) as error:  # PyTorch's, where there is no such device
                return [f"expected a CUDA device that PyTorch can use, got {spec.device}: {error}"]
            reasons += missing_target(self._extension.build_info()["cuda_targets"], capability)
        return reasons

    def path(
        self,
        spec: MixerSpec,  # that is supported, on a CUDA device
        backward: bool,
    ) -> KernelPath:
        """What csrc/cuda/fused/path.h chooses for a pass of a call."""
        major, minor = torch.cuda.get_device_capability(spec.device)
        found = self._extension.cuda_path(
            dtype=str(spec.dtype).removeprefix("torch."),
            B=max(spec.batch, 1),
            H=spec.height,
            W=spec.width,
            K=spec.blocks,
            D=spec.block_size,
            Dh=spec.hidden_size,
            capability=10 * major + minor,
            backward=backward,
            allowed=self._extension.one_launch(),
        )
        return KernelPath(found["path"], found["why"])

    def forward(
        self,
        spec: MixerSpec,
        x: Tensor,  # [B, C, H, W]
        parameters: Parameters,
        sparsity_threshold: float,
    ) -> Tensor:  # [B, C, H, W]
        return self._extension.native_forward(x, *parameters, sparsity_threshold, spec.activation)

    def backward(
        self,
        spec: MixerSpec,
        dy: Tensor,  # [B, C, H, W]
        x: Tensor,  # [B, C, H, W]
        parameters: Parameters,
        sparsity_threshold: float,
        input_grad: bool,
        parameter_grads: bool,
    ) -> Gradients:
        return self._extension.native_backward(
            dy, x, *parameters, sparsity_threshold, spec.activation, input_grad, parameter_grads
        )


def beyond_limits(
    spec: MixerSpec,
    limits: dict[str, int],  # of the kernels: "channels" of a block, elements of a "plane"
) -> list[str]:
    """The sizes of a call that the CUDA kernels cannot take."""
    reasons = []
    if max(spec.block_size, spec.hidden_size) > limits["channels"]:
        reasons.append(
            f"expected up to {limits['channels']} channels and hidden channels per block, "
            f"got {spec.block_size} and {spec.hidden_size}"
        )
    if spec.height * spec.width > limits["plane"]:
        reasons.append(f"expected up to {limits['plane']} elements per plane, got {spec.height} x {spec.width}")
    return reasons


def missing_target(
    targets: str,  # TORCH_CUDA_ARCH_LIST of the build
    capability: tuple[int, int],  # of the device
) -> list[str]:
    """Why code for `targets` does not run on a device: machine code serves later minors, PTX every later device."""
    major, minor = capability
    for target in re.split(r"[;\s]+", targets.strip()):
        found = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", target)
        if found is None:  # a name, such as Hopper: let the driver say
            return []
        built = int(found[1]), int(found[2])
        exact = bool(found[3])
        if built == capability or (not exact and built[0] == major and built[1] <= minor):
            return []
        if found[4] and not exact and built <= capability:
            return []
    wanted = f"{major}.{minor}"
    return [f"the extension was built for {targets}, the device is {wanted}; TORCH_CUDA_ARCH_LIST={wanted} {REBUILD}"]


def load_extension(
    package: str = "affnet_kernels",
) -> tuple[ModuleType | None, str]:
    """The extension, or None and the reason. Never compiles, warns or raises.

    What it was built for is read from `_C.json` first: loading a library built for another PyTorch can crash.
    """
    root = Path(importlib.import_module(package).__path__[0])
    facts = read_build_facts(root)
    running = ".".join(torch.__version__.split(".")[:2])
    if "failed" in facts:
        return None, f"the compiled extension was not built: {facts['failed']}; {SLOWER}; build it: {REBUILD}"
    if not [path for path in root.glob("_C.*") if path.suffix != ".json"]:
        return None, f"the compiled extension is not built; {SLOWER}; build it: {REBUILD}"
    built_for = facts.get("torch", "an unknown version")
    if facts and not built_for.startswith(f"{running}."):
        return None, (
            f"the compiled extension was built for torch {built_for}, and torch {torch.__version__} is running; "
            f"{SLOWER}; rebuild it: {REBUILD}"
        )
    try:
        return importlib.import_module(f"{package}._C"), ""
    except (ImportError, OSError) as error:
        built = f"torch {built_for}, Python {facts.get('python', 'unknown')}"
        return None, (
            f"the compiled extension, built for {built}, does not load ({error}); {SLOWER}; rebuild it: {REBUILD}"
        )


def read_build_facts(
    root: Path,
) -> dict[str, Any]:
    """What setup.py recorded beside the library; empty if nothing."""
    try:
        facts = json.loads((root / "_C.json").read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


@cache
def warn_of_missing_extension() -> None:
    """Say once that calls which it would serve run on the reference, and why."""
    if EXTENSION is None:
        warnings.warn(f"affnet_kernels: {_WHY_NOT}", RuntimeWarning, stacklevel=2)


def build_facts() -> str:
    """How the extension was built, or why there is none, in words."""
    if EXTENSION is None:
        return _WHY_NOT
    facts = read_build_facts(Path(__file__).parents[1])
    notes = [f"{name} {value or 'no'}" for name, value in EXTENSION.build_info().items()]
    notes += ["no OpenMP: the CPU kernel runs on one thread"] if facts.get("openmp") is False else []
    notes += [f"without CUDA, which failed: {facts['cuda_failed']}"] if "cuda_failed" in facts else []
    return ", ".join(notes)


EXTENSION, _WHY_NOT = load_extension()
CPU = Native("cpu", EXTENSION, _WHY_NOT)
CUDA = Native("cuda", EXTENSION, _WHY_NOT)
