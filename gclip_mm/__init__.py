"""Gradient clipping for MMEngine, MMDetection and plain PyTorch, from detection to scene graphs.

``import gclip_mm`` needs only torch. With MMEngine installed it also registers the optimizer
wrappers and hooks, and with MMDetection installed the data sets and models. A package that is
installed but cannot be imported causes a warning, and is done without. One line in a config is
enough::

    custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
"""

from .clipping import CLIPPERS, ClipConfigError, NonFiniteGradientError, attach
from .compat import is_usable
from .version import __version__

__all__ = ['CLIPPERS', 'ClipConfigError', 'NonFiniteGradientError', '__version__', 'attach']

if is_usable('mmengine.runner'):
    from .engine import GClipAmpOptimWrapper, GClipHook, GClipOptimWrapper, apply_clip

    __all__ += ['GClipAmpOptimWrapper', 'GClipHook', 'GClipOptimWrapper', 'apply_clip']

    if is_usable('mmdet.models'):
        from . import datasets, models, scene_graph  # noqa: F401
