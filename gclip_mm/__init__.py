"""Gradient clipping for MMEngine, MMDetection and plain PyTorch, from detection to scene graphs.

``import gclip_mm`` needs torch alone. Where MMEngine is installed it also registers the optimizer
wrappers and hooks, and where MMDetection is installed the data sets and models, so that one line in
a config is enough. A package that is installed but cannot be imported causes a warning, and
everything else works::

    custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

In the process of the command ``gclip`` all of this waits until a sub-command needs it, so that
``gclip --help`` and ``gclip plot`` are fast.
"""

import multiprocessing
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .clipping import CLIPPERS, ClipConfigError, NonFiniteGradientError, attach  # noqa: F401
    from .engine import (  # noqa: F401
        GClipAmpOptimWrapper,
        GClipHook,
        GClipOptimWrapper,
        apply_clip,
    )

_CORE = ('CLIPPERS', 'ClipConfigError', 'NonFiniteGradientError', 'attach')
_MMENGINE = ('GClipAmpOptimWrapper', 'GClipHook', 'GClipOptimWrapper', 'apply_clip')


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        # The import is blocked, as in tests and in zipped applications.
        return False


def _is_command() -> bool:
    """Whether ``gclip`` or ``python -m gclip_mm.cli`` started this process."""
    if multiprocessing.parent_process() is not None:
        return False
    program = sys.argv[0] if sys.argv else ''
    if program == '-m':
        return 'gclip_mm.cli' in sys.orig_argv
    return PurePath(program).name in ('gclip', 'gclip.exe')


def _load() -> None:
    """Import the public names, which registers everything with MMEngine and MMDetection."""
    clipping = import_module('.clipping', __name__)
    globals().update({name: getattr(clipping, name) for name in _CORE})
    is_usable = import_module('.compat', __name__).is_usable
    if is_usable('mmengine.runner'):
        engine = import_module('.engine', __name__)
        globals().update({name: getattr(engine, name) for name in _MMENGINE})
        if is_usable('mmdet.models'):
            for name in ('datasets', 'models', 'scene_graph'):
                import_module(f'.{name}', __name__)
    else:
        __all__[:] = [name for name in __all__ if name not in _MMENGINE]


__all__ = [*_CORE, '__version__']
if _is_installed('mmengine'):
    __all__ += _MMENGINE

if not _is_command():
    _load()


def __getattr__(name: str) -> Any:
    if name in __all__:
        _load()
        if name in globals():
            return globals()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
