"""AFFNet, AFFNet-T and AFFNet-ET on the fused mixer."""

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
    "fuse_for_inference",
]
