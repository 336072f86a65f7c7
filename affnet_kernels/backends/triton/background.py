"""Compiles the kernels of a backward while its forward, and the rest of the network's, still runs or compiles."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import torch

from affnet_kernels.backends.triton import device, launch
from affnet_kernels.backends.triton.compilation import PARSER_IS_THREAD_SAFE, backward_jobs, warm_job
from affnet_kernels.spec import MixerSpec

SUPPORTED = PARSER_IS_THREAD_SAFE  # else what another thread parses meanwhile, as torch.compile does, could fail
AT_A_TIME = 4  # specs; more threads would keep Python's global lock from the thread that trains


def compile_backward(
    spec: MixerSpec,
    input_grad: bool,
    parameter_grads: bool,
) -> None:
    """Start to compile what `backward` launches for the same arguments, and return at once.

    The first backward waits for a kernel that is being compiled here. One that is not, because its turn has not come or
    because of an error, the backward compiles itself, and raises the error where it would be raised without a thread.
    Results are the same at any timing: no other backend stands in for a kernel that is not ready, since training would
    then not be reproducible.
    """
    if device.interpreted() or not SUPPORTED:
        return
    if spec.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    from affnet_kernels.kernels import mixer  # noqa: F401 - here, because Triton's imports are circular

    arguments = spec, input_grad, parameter_grads
    thread = threading.Thread(target=_compile, args=arguments, name="affnet_kernels compiler", daemon=False)
    with suppress(RuntimeError):  # no more threads, or the interpreter exits
        thread.start()


def _compile(spec: MixerSpec, input_grad: bool, parameter_grads: bool) -> None:
    with _slots, suppress(Exception):  # the backward compiles again what failed
        for job in backward_jobs(spec, device.facts(spec.device).capability, input_grad, parameter_grads):
            if threading.main_thread().is_alive():  # else the interpreter is waiting to exit
                with launch.compilation_lock(job.kernel, job.constants):
                    warm_job(job, spec.device)


def _after_fork() -> None:
    """The threads of the parent, and the locks that they held, are not the child's."""
    global _slots
    _slots = threading.BoundedSemaphore(AT_A_TIME)
    launch.COMPILATION_LOCKS.clear()


_slots = threading.BoundedSemaphore(AT_A_TIME)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
