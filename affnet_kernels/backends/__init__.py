"""The backends in order of preference, and the choice among them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

from torch import Tensor

from affnet_kernels.backends import reference, triton
from affnet_kernels.backends.native import CPU, CUDA, KernelPath, warn_of_missing_extension
from affnet_kernels.backends.preference import preference, rank
from affnet_kernels.spec import Gradients, MixerSpec, Parameters


class Backend(Protocol):
    """What a backend offers; modules and plain objects both do. It may assume a validated call with B >= 1."""

    @property
    def NAME(self) -> str: ...

    def unsupported(self, spec: MixerSpec | None) -> list[str]:
        """Reasons why it cannot run `spec`, in words; empty: it can. None asks whether it can run here at all."""

    def forward(
        self,
        spec: MixerSpec,
        x: Tensor,  # [B, C, H, W], any layout
        parameters: Parameters,  # in compute_dtype(x.dtype)
        sparsity_threshold: float,
    ) -> Tensor:
        """y [B, C, H, W], contiguous, of x's dtype; residual included."""

    def backward(
        self,
        spec: MixerSpec,
        dy: Tensor,  # [B, C, H, W], any layout, of x's dtype
        x: Tensor,
        parameters: Parameters,
        sparsity_threshold: float,
        input_grad: bool,
        parameter_grads: bool,
    ) -> Gradients:
        """dx in x's dtype, and dw1, db1, dw2, db2 in theirs; of shape [0] where its flag says it is not needed."""


BACKENDS: tuple[Backend, ...] = (CPU, triton, CUDA, reference)


@lru_cache(maxsize=1024)
def select(
    spec: MixerSpec,
    requested: str | None,
    backward: bool = False,  # the pass that is to run
) -> Backend:
    """The requested backend, or the first that can run `spec`.

    Raises:
        ValueError: no backend has that name.
        NotImplementedError: the requested backend cannot run `spec`; the message gives every backend's reasons.
    """
    if requested is not None and requested not in (names := [backend.NAME for backend in BACKENDS]):
        raise ValueError(f"fused_aff_mixer: expected backend to be None or one of {names}, got {requested!r}")
    candidates = [backend for backend in BACKENDS if requested in (None, backend.NAME)]
    for backend in sorted(candidates, key=lambda candidate: rank(kernel_of(candidate, spec, backward), spec)):
        if not backend.unsupported(spec):
            if requested is None and backend is reference and spec.device.type in (CPU.NAME, CUDA.NAME):
                warn_of_missing_extension()
            return backend
    raise NotImplementedError(
        f"fused_aff_mixer: expected a backend that can run this call, got backend={requested!r}, which cannot; "
        f"leave backend=None to let one be chosen\n{as_lines(available_backends(spec))}"
    )


def kernel_of(
    backend: Backend,
    spec: MixerSpec,
    backward: bool,
) -> str:
    """The kernel of a pass, as preference.py names it."""
    path = path_of(backend, spec, backward)
    return path.name if path else backend.NAME


def path_of(
    backend: Backend,
    spec: MixerSpec,
    backward: bool,
) -> KernelPath | None:
    """Which of its ways a pass takes; None for a backend that has one, or that cannot run the call."""
    if backend is not CUDA or spec.device.type != CUDA.NAME or CUDA.unsupported(spec):
        return None
    return CUDA.path(spec, backward)


def available_backends(
    spec: MixerSpec | None = None,
) -> dict[str, list[str]]:
    """Every backend, in order of preference, with the reasons why it cannot run; an empty list: it can.

    Args:
        spec: the call to ask about, as `MixerSpec.of(x, w1)`; None asks what can run on this machine at all.
    """
    return {backend.NAME: backend.unsupported(spec) for backend in BACKENDS}


class Explanation(NamedTuple):
    """Which backend a call runs on, and why each of the others does not; printed as lines of text."""

    chosen: str | None  # None: the backend asked for by name cannot run the call, or there is none of that name
    reasons: dict[str, str]  # for every backend, the one that runs included

    def __str__(self) -> str:
        return "\n".join(f"  {name}: {reason}" for name, reason in self.reasons.items())


def explain_choice(
    spec: MixerSpec,
    requested: str | None,
) -> Explanation:
    """What `select` does for a call, in words."""
    refusals = available_backends(spec)
    chosen: str | None
    backward: str | None
    try:
        chosen, backward = (select(spec, requested, is_backward).NAME for is_backward in (False, True))
    except (NotImplementedError, ValueError):
        chosen = backward = None
    preferred = preference(spec)

    def reason(backend: Backend, why: list[str]) -> str:
        name = backend.NAME
        if why:
            return f"cannot run this call: {'; '.join(why)}"
        ways = paths_in_words(backend, spec)
        if name != chosen:
            other = f"{chosen} is preferred" if requested is None else f"backend={requested!r} was asked for"
            also = "; runs the backward pass" if name == backward else ""
            return f"can run this call, but {other}{also}{ways}"
        if requested is not None:
            return f"runs: it was asked for by name{ways}"
        only = "" if backward in (name, None) else f"; the backward pass goes to {backward}"
        if preferred.order[:1] == (kernel_of(backend, spec, False),):
            return f"runs: it comes first, {preferred.why}{only}{ways}"
        return f"runs: the backends that come before it cannot{only}{ways}"

    return Explanation(chosen, {backend.NAME: reason(backend, refusals[backend.NAME]) for backend in BACKENDS})


def paths_in_words(
    backend: Backend,
    spec: MixerSpec,
) -> str:
    """Which way each pass goes, and why not the other; empty for a backend that has one way."""
    said = []
    for name, backward in (("forward", False), ("backward", True)):
        path = path_of(backend, spec, backward)
        if path:
            said.append(f"; {name} {f'planned, with cuFFT, because {path.why}' if path.why else 'in one launch'}")
    return "".join(said)


def as_lines(
    refusals: dict[str, list[str]],
) -> str:
    """What `available_backends` returns, as lines of text."""
    return "\n".join(f"  {name}: {'; '.join(why) if why else 'can run'}" for name, why in refusals.items())
