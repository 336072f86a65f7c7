"""How much memory a call allocates at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces every start and stop otherwise


def peak_bytes(
    run: Callable[[], object],
    device_type: str,
) -> int:
    """The most that PyTorch's allocator holds during a call, above what it held before; its result counts."""
    if device_type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        del result
        return int(torch.cuda.max_memory_allocated() - before)
    return _cpu_peak_bytes(run)


def _cpu_peak_bytes(run: Callable[[], object]) -> int:
    # The profiler sees every allocation and release of the CPU allocator, in order; resident size would also count
    # what malloc keeps for later, and miss what it already had.
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        result = run()
    del result
    changes = [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]
    peak = level = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak
