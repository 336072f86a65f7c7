"""AFFNet, AFFNet-T and AFFNet-ET on the fused mixer, alone (in timm's registry too) and with heads for dense tasks."""

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
from affnet_kernels.models.boxes import decode_boxes, encode_boxes
from affnet_kernels.models.checkpoint import from_checkpoint, load_checkpoint, read_checkpoint
from affnet_kernels.models.deeplabv3 import DeepLabv3, deeplabv3
from affnet_kernels.models.inference import fuse_for_inference
from affnet_kernels.models.ssdlite import Detections, SSDLite, ssdlite

__all__ = [
    "MODELS",
    "AFFNet",
    "DeepLabv3",
    "Detections",
    "SSDLite",
    "affnet",
    "affnet_base",
    "affnet_et",
    "affnet_large",
    "affnet_t",
    "create_model",
    "decode_boxes",
    "deeplabv3",
    "encode_boxes",
    "from_checkpoint",
    "fuse_for_inference",
    "load_checkpoint",
    "read_checkpoint",
    "ssdlite",
]


def _register_with_timm() -> None:
    try:
        importlib.import_module("affnet_kernels.models.timm_models")
    except ImportError as error:  # must not break the import of either package
        warnings.warn(f"affnet_kernels: the networks are not in timm's registry: {error}; update timm", stacklevel=2)


when_imported("timm", _register_with_timm)
