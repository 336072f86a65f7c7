"""AFFNet's adaptive frequency filter as one fused operator for PyTorch."""

from affnet_kernels import flops as flops
from affnet_kernels.backends import available_backends
from affnet_kernels.functional import explain, fused_aff_mixer
from affnet_kernels.modules import AFFMixer
from affnet_kernels.replacement import replace_mixers
from affnet_kernels.spec import MixerSpec

__version__ = "0.1.0"
__all__ = ["AFFMixer", "MixerSpec", "available_backends", "explain", "fused_aff_mixer", "replace_mixers"]
