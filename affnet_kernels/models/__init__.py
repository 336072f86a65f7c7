"""AFFNet, AFFNet-T and AFFNet-ET on the fused mixer; in timm's registry too, where timm is imported."""

import importlib
import warnings

from affnet_kernels.import_hooks import when_imported
from affnet_kernels.models.affnet import (
    MODELS,
    AFFNet,
    affnet,
    affnet_base,
    affnet_et,
    affnet_large,
    affnet_t,
    create_model,
)
from affnet_kernels.models.checkpoint import from_checkpoint, load_checkpoint, read_checkpoint
from affnet_kernels.models.inference import fuse_for_inference

__all__ = [
    "MODELS",
    "AFFNet",
    "affnet",
    "affnet_base",
    "affnet_et",
    "affnet_large",
    "affnet_t",
    "create_model",
    "from_checkpoint",
    "fuse_for_inference",
    "load_checkpoint",
    "read_checkpoint",
]


def _register_with_timm() -> None:
    try:
        importlib.import_module("affnet_kernels.models.timm_models")
    except ImportError as error:  # must not break the import of either package
        warnings.warn(f"affnet_kernels: the networks are not in timm's registry: {error}; update timm", stacklevel=2)


when_imported("timm", _register_with_timm)
