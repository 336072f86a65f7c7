"""How much memory a call allocates at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces every start and stop


def peak_bytes(run: Callable[[], object], device_type: str) -> int:
    """The most that PyTorch's allocator holds during a call beyond what it held before, the result included."""
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
    # The profiler records every allocation and release of PyTorch's CPU allocator in order. The resident size would
    # include memory that malloc keeps for later, and miss allocations served from memory it had kept.
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        result = run()
    del result
    changes = [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]
    peak = level = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak
