"""What differs between installations: which packages there are, and in which release.

This is the only module that asks for a version.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        # The import is blocked, as tests do and as zipped applications may.
        return False


def loads_weights_only() -> bool:
    """Whether ``torch.load`` accepts only the classes on its allow-list by default (torch 2.6)."""
    major, minor = torch.__version__.split('.')[:2]
    return (int(major), int(minor)) >= (2, 6)


def numpy_multiarray() -> ModuleType:
    """The module that NumPy's pickles name: ``numpy._core.multiarray`` since NumPy 2."""
    import numpy as np

    core = getattr(np, '_core', None) or np.core
    return core.multiarray
