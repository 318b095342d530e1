"""Gradient clipping for any PyTorch optimizer: rules, routes, and the engine that applies them."""

from .adaclip import AdaClip
from .adagc import AdaGC
from .agc import AGC
from .attach import ClipHandle, attach
from .autoclip import AutoClip
from .base import Clipper, GlobalClipper, Measure, Outcome, TensorClipper
from .block_rms_clip import BlockRMSClip
from .chain_clip import ChainClip
from .config import ClipConfig, parse_clip_grad
from .engine import GradClipEngine
from .gradient_stabilizer import GradientStabilizer
from .nonfinite import NonFiniteGradientError
from .norm_clip import NormClip
from .param_norm_clip import ParamNormClip
from .registry import CLIPPERS, ClipConfigError
from .spike_clip import SpikeClip
from .stats import LOG_KEYS
from .value_clip import ValueClip
from .zclip import ZClip

__all__ = [
    'AGC',
    'CLIPPERS',
    'LOG_KEYS',
    'AdaClip',
    'AdaGC',
    'AutoClip',
    'BlockRMSClip',
    'ChainClip',
    'ClipConfig',
    'ClipConfigError',
    'ClipHandle',
    'Clipper',
    'GlobalClipper',
    'GradClipEngine',
    'GradientStabilizer',
    'Measure',
    'NonFiniteGradientError',
    'NormClip',
    'Outcome',
    'ParamNormClip',
    'SpikeClip',
    'TensorClipper',
    'ValueClip',
    'ZClip',
    'attach',
    'parse_clip_grad',
]
