"""Clipping in Detectron2, and in what is built on it; needs Detectron2. See docs/detectron2.md.

``optimizer = clip(build_optimizer(cfg, model), rule, model)`` is the one line for a script.
``GClipHook`` is the same as a hook, :func:`lazy` for a LazyConfig, ``SOLVER.GCLIP`` for YAML and
the command line, and ``python -m gclip_mm.detectron2 --clip RULE train_net.py ...`` for a script
that is not to be edited.
"""

from .clip import clip
from .hook import GClipHook
from .lazy_config import lazy
from .rule import add_gclip_config

__all__ = ['GClipHook', 'add_gclip_config', 'clip', 'lazy']
