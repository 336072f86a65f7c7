"""Measures the mixer against plain PyTorch and other mixers, and reports what was measured."""
