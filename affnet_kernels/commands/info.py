"""`info`: what is installed, and which backends can run."""

from __future__ import annotations

import argparse
import platform

import torch

from affnet_kernels import __version__, available_backends
from affnet_kernels.backends import as_lines
from affnet_kernels.backends.native import build_facts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """Print versions, devices, the extension's build and every backend with its reasons."""
    rows = [
        ("affnet_kernels", __version__),
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"),
        ("triton", _triton_version()),
        ("cuda", ", ".join(_devices()) or "no CUDA device"),
        ("extension", build_facts()),
    ]
    for name, value in rows:
        print(f"{name:<15} {value}")
    print("backends, in order of preference:")
    print(as_lines(available_backends()))
    return 0


def _devices() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return str(triton.__version__)
