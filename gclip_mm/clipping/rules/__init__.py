"""The clipping rules, one file each; importing this package registers them."""

from .adaclip import AdaClip
from .adagc import AdaGC
from .agc import AGC
from .auto import Auto
from .autoclip import AutoClip
from .block_rms_clip import BlockRMSClip
from .chain_clip import ChainClip
from .gradient_stabilizer import GradientStabilizer
from .norm_clip import NormClip
from .param_norm_clip import ParamNormClip
from .spike_clip import SpikeClip
from .value_clip import ValueClip
from .zclip import ZClip

__all__ = [
    'AGC',
    'AdaClip',
    'AdaGC',
    'Auto',
    'AutoClip',
    'BlockRMSClip',
    'ChainClip',
    'GradientStabilizer',
    'NormClip',
    'ParamNormClip',
    'SpikeClip',
    'ValueClip',
    'ZClip',
]
