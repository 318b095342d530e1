"""Gradient clipping for any PyTorch optimizer: rules, routes, and the engine that applies them."""

from .agc import AGC
from .attach import ClipHandle, attach
from .base import Clipper, GlobalClipper, Measure, Outcome, TensorClipper
from .config import ClipConfig, parse_clip_grad
from .engine import GradClipEngine, NonFiniteGradientError
from .norm_clip import NormClip
from .registry import CLIPPERS, ClipConfigError
from .stats import LOG_KEYS
from .value_clip import ValueClip

__all__ = [
    'AGC',
    'CLIPPERS',
    'LOG_KEYS',
    'ClipConfig',
    'ClipConfigError',
    'ClipHandle',
    'Clipper',
    'GlobalClipper',
    'GradClipEngine',
    'Measure',
    'NonFiniteGradientError',
    'NormClip',
    'Outcome',
    'TensorClipper',
    'ValueClip',
    'attach',
    'parse_clip_grad',
]
