"""What the Triton backend must know about a device."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import torch


class Facts(NamedTuple):
    """The properties of a GPU that launches depend on."""

    capability: tuple[int, int]  # compute capability, major and minor
    shared: int  # KiB of shared memory that one CTA can have
    multiprocessors: int


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def facts(
    device: torch.device,
) -> Facts:
    if device.type != "cuda":  # the interpreter; so few multiprocessors that each program takes several tiles
        return Facts((9, 0), 227, 2)
    properties: Any = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin // 1024
    return Facts((properties.major, properties.minor), shared, properties.multi_processor_count)


def other_than_current(
    device: torch.device,
) -> AbstractContextManager[None] | None:
    """What makes `device` the current one, if it is a CUDA device and another one is current."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return None
    return torch.cuda.device(device)
