"""Gradient clipping for any PyTorch optimizer: rules, routes, and the engine that applies them."""

from .attach import ClipHandle, attach
from .base import (
    Clipper,
    ElementClipper,
    Finite,
    GlobalClipper,
    Measure,
    Outcome,
    Ranges,
    TensorClipper,
    UnitClipper,
    UnitLimits,
)
from .checks import ClipConfigError
from .config.parse import ClipConfig, parse_clip_grad
from .config.registry import CLIPPERS
from .rules import (
    AGC,
    AdaClip,
    AdaGC,
    Auto,
    AutoClip,
    BlockRMSClip,
    ChainClip,
    GradientStabilizer,
    NormClip,
    ParamNormClip,
    SpikeClip,
    ValueClip,
    ZClip,
)
from .step.engine import GradClipEngine
from .step.nonfinite import NonFiniteGradientError
from .step.record import LOG_KEYS

__all__ = [
    'AGC',
    'CLIPPERS',
    'LOG_KEYS',
    'AdaClip',
    'AdaGC',
    'Auto',
    'AutoClip',
    'BlockRMSClip',
    'ChainClip',
    'ClipConfig',
    'ClipConfigError',
    'ClipHandle',
    'Clipper',
    'ElementClipper',
    'Finite',
    'GlobalClipper',
    'GradClipEngine',
    'GradientStabilizer',
    'Measure',
    'NonFiniteGradientError',
    'NormClip',
    'Outcome',
    'ParamNormClip',
    'Ranges',
    'SpikeClip',
    'TensorClipper',
    'UnitClipper',
    'UnitLimits',
    'ValueClip',
    'ZClip',
    'attach',
    'parse_clip_grad',
]
