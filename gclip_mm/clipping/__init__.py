"""Gradient clipping for any PyTorch optimizer: rules, routes, and the engine that applies them."""

from .attach import ClipHandle, attach
from .base import Clipper, GlobalClipper, Measure, Outcome, TensorClipper
from .checks import ClipConfigError
from .config.parse import ClipConfig, parse_clip_grad
from .config.registry import CLIPPERS
from .rules.adaclip import AdaClip
from .rules.adagc import AdaGC
from .rules.agc import AGC
from .rules.autoclip import AutoClip
from .rules.block_rms_clip import BlockRMSClip
from .rules.chain_clip import ChainClip
from .rules.gradient_stabilizer import GradientStabilizer
from .rules.norm_clip import NormClip
from .rules.param_norm_clip import ParamNormClip
from .rules.spike_clip import SpikeClip
from .rules.value_clip import ValueClip
from .rules.zclip import ZClip
from .step.engine import GradClipEngine
from .step.nonfinite import NonFiniteGradientError
from .step.record import LOG_KEYS

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
