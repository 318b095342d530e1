"""What differs between installations: which packages there are, and in which release.

This is the only module that asks for a version.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from importlib.util import find_spec
from types import ModuleType

import torch


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        # The import is blocked, as tests do and as zipped applications may.
        return False


#: Optional packages, and what does not work without them.
_OPTIONAL = {
    'mmengine': 'the optimizer wrappers and hooks for MMEngine',
    'mmdet': 'the models, data sets and scene graphs for MMDetection',
}


@functools.cache
def is_usable(module: str) -> bool:
    """Whether a module of an optional package can be imported; imports it.

    A package that is found but fails to import (MMDetection without MMCV, or with a release of MMCV
    that it refuses) counts as not installed, with a warning that quotes the error.

    Args:
        module: dotted name of a module in a package of ``_OPTIONAL``.
    """
    package = module.partition('.')[0]
    if not is_installed(package):
        return False
    try:
        importlib.import_module(module)
    # MMDetection checks versions by assert; a shared library that does not load is an OSError.
    except Exception as error:
        warnings.warn(
            f'{package} is installed but cannot be imported ({type(error).__name__}: {error}). '
            f'gclip_mm works without {_OPTIONAL[package]}',
            stacklevel=2,
        )
        return False
    return True


def loads_weights_only() -> bool:
    """Whether ``torch.load`` accepts only the classes on its allow-list by default (torch 2.6)."""
    major, minor = torch.__version__.split('.')[:2]
    return (int(major), int(minor)) >= (2, 6)


def numpy_multiarray() -> ModuleType:
    """The module that NumPy's pickles name: ``numpy._core.multiarray`` since NumPy 2."""
    import numpy as np

    core = getattr(np, '_core', None) or np.core
    return core.multiarray
