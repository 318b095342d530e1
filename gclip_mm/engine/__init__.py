"""Clipping for MMEngine: optimizer wrappers and hooks.

An import registers them and patches the packages that :mod:`gclip_mm.engine.patches` names.
"""

from .apply_clip import apply_clip
from .hooks import (
    GClipCheckpointHook,
    GClipHook,
    GClipMonitorHook,
    GClipRNGStateHook,
    GClipRuntimeInfoHook,
    GClipSpikeHook,
)
from .optim_wrapper import GClipAmpOptimWrapper, GClipOptimWrapper
from .patches import apply_patches

apply_patches()

__all__ = [
    'GClipAmpOptimWrapper',
    'GClipCheckpointHook',
    'GClipHook',
    'GClipMonitorHook',
    'GClipOptimWrapper',
    'GClipRNGStateHook',
    'GClipRuntimeInfoHook',
    'GClipSpikeHook',
    'apply_clip',
]
