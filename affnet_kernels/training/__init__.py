"""Training and evaluation of the networks: `train` and `evaluate`, as in `python -m affnet_kernels train`."""

from affnet_kernels.training.engine import train
from affnet_kernels.training.evaluation import evaluate
from affnet_kernels.training.recipe import Recipe
from affnet_kernels.training.settings import Settings, Summary

__all__ = ["Recipe", "Settings", "Summary", "evaluate", "train"]
