"""Checks on compiled GPU kernels that need no GPU: registers, spills, shared memory, predicted times."""
