"""The data sets: embedded ones, and folders in common layouts."""

from __future__ import annotations


def needs(caller: str, package: str, error: Exception) -> ImportError:
    """The error of a data set or metric whose package is not installed."""
    return ImportError(f"{caller}: needs {package}, got {error}; pip install 'affnet_kernels[train]'")
