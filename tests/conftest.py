"""Which backends the tests run, and memory that shows when it is read before it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on the CPU


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills with NaN by torch.utils.deterministic's default
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(
    params=[
        "reference",
        "cpu",
        pytest.param("triton", marks=pytest.mark.gpu),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend; the GPU ones where there is a GPU (tests/test_triton.py runs Triton's interpreter)."""
    if request.param in ("triton", "cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param
