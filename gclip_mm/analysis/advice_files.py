"""The files that the advisor writes: a config for each rule, and the figures as JSON."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..engine.configs import clip_hooks, drop_clip_hooks
from .advice import Advice
from .gradient_stats import GradientStats


def config_text(
    advice: Advice, optim_wrapper: dict[str, Any], lr: float, base: str, hooks: str = ''
) -> str:
    """The text of a config that inherits from a base config and clips by the advised rule.

    Args:
        advice: the rule.
        optim_wrapper: that of the base config.
        lr: the base learning rate.
        base: the entry of ``_base_``.
        hooks: a line that sets ``custom_hooks``, if those of the base config have to change.
    """
    is_amp = 'Amp' in getattr(optim_wrapper['type'], '__name__', optim_wrapper['type'])
    kind = 'GClipAmpOptimWrapper' if is_amp else 'GClipOptimWrapper'
    clip_grad = dict(advice.clip_grad)
    old = optim_wrapper.get('clip_grad') or {}
    if old.get('type') in ('AGC', 'agc', 'adaptive') and advice.name == 'agc' and 'exclude' in old:
        clip_grad['exclude'] = list(old['exclude'])
    if optim_wrapper.get('clip_grad'):
        clip_grad = {'_delete_': True, **clip_grad}
    items = ', '.join(f'{key}={value!r}' for key, value in clip_grad.items())
    reason = textwrap.fill(advice.reason, 98, initial_indent='# ', subsequent_indent='# ')
    return (
        f'{reason}\n'
        f'_base_ = [{base!r}]\n'
        "custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)\n"
        f'{hooks}'
        'optim_wrapper = dict(\n'
        f'    type={kind!r},\n'
        f'    optimizer=dict(lr={lr:g}),\n'
        f'    clip_grad=dict({items}),\n'
        ')\n'
    )


def hooks_without_clipping(cfg: Config) -> str:
    """The line that removes a ``GClipHook``, which rejects a wrapper that clips; or ''."""
    if not clip_hooks(cfg):
        return ''
    rest = Config(dict(custom_hooks=list(cfg.custom_hooks)))
    drop_clip_hooks(rest)
    return f'custom_hooks = {rest.to_dict()["custom_hooks"]!r}\n'


def base_name(config: str, folder: Path) -> str:
    """The entry of ``_base_`` by which a config in ``folder`` inherits from ``config``."""
    return config if '::' in config else Path(os.path.relpath(config, folder)).as_posix()


def summary(stats: GradientStats) -> dict[str, Any]:
    """Percentiles of the recorded norms, for the JSON file."""
    marks = (0, 10, 50, 90, 99, 100)

    def spread(values: np.ndarray) -> dict[str, float]:
        return {f'p{q}': float(v) for q, v in zip(marks, np.percentile(values, marks), strict=True)}

    modules: dict[str, np.ndarray] = {}
    for i, name in enumerate(stats.names):
        key = name.rpartition('.')[0] or '(root)'
        modules[key] = np.hypot(modules.get(key, 0.0), stats.grad[:, i])
    return {
        'grad_norm': spread(stats.norm),
        'module_grad_norm': {name: spread(values) for name, values in modules.items()},
        'unit_grad_to_weight': spread(stats.unit_ratio),
    }
