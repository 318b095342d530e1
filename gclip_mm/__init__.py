"""Gradient clipping for MMEngine, MMDetection and plain PyTorch, from detection to scene graphs.

``import gclip_mm`` needs torch alone. Where MMEngine is installed it also registers the optimizer
wrappers and hooks, and where MMDetection is installed the data sets and models, so that one line in
a config is enough::

    custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
"""

from importlib.util import find_spec

from .clipping import CLIPPERS, ClipConfigError, NonFiniteGradientError, attach
from .version import __version__

__all__ = ['CLIPPERS', 'ClipConfigError', 'NonFiniteGradientError', '__version__', 'attach']


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        # Somebody blocks the import, as tests do and as zipped applications may.
        return False


if _is_installed('mmengine'):
    from .engine import GClipAmpOptimWrapper, GClipHook, GClipOptimWrapper, apply_clip

    __all__ += ['GClipAmpOptimWrapper', 'GClipHook', 'GClipOptimWrapper', 'apply_clip']

    if _is_installed('mmdet'):
        from . import datasets, models, scene_graph  # noqa: F401
