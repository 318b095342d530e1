"""Training engines that clip by themselves: DeepSpeed, ColossalAI, Apex.

They own the gradients between backward and step, so that a hook on the optimizer would see parts
of them, scaled ones, or none. Where a rule is the very thing that the engine does, it is handed
over as the engine's own setting; anything else raises, with the line to write instead.
"""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from ..clipping.checks import ClipConfigError
from ..clipping.config.parse import parse_clip_grad
from ..clipping.rules.norm_clip import NormClip

#: Wrappers whose optimizer is not what it seems, and what to write instead.
FOREIGN_WRAPPERS = {
    'DeepSpeedOptimWrapper': "strategy=dict(type='DeepSpeedStrategy', gradient_clipping={norm})",
    'ColossalAIOptimWrapper': (
        "strategy=dict(type='ColossalAIStrategy', "
        "plugin=dict(type='LowLevelZeroPlugin', max_norm={norm}))"
    ),
    'ApexOptimWrapper': (
        "optim_wrapper=dict(type='GClipAmpOptimWrapper', clip_grad=dict(type='NormClip', "
        'max_norm={norm})), which needs no Apex'
    ),
}


def hand_over(cfg: Config, clip_grad: dict[str, Any]) -> bool:
    """Give a norm rule to the training engine of the config, if it has one that clips by itself.

    DeepSpeed's ``gradient_clipping`` is the global 2-norm; what becomes of a non-finite step is
    then DeepSpeed's own business, so that an explicit ``nonfinite`` cannot be kept.

    Returns:
        bool: whether it was handed over; False: an ordinary config, nothing was done.

    Raises:
        ClipConfigError: such an engine, and a rule that it cannot take; gives the exact line.
    """
    strategy = cfg.get('strategy')
    kind = strategy.get('type') if isinstance(strategy, dict) else strategy
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', None)
    if kind == 'DeepSpeedStrategy':
        cfg.strategy.gradient_clipping = _plain_norm(clip_grad, 'DeepSpeedOptimWrapper')
        return True
    if kind == 'ColossalAIStrategy':
        plugin = strategy.get('plugin')
        if not isinstance(plugin, dict):
            refuse('ColossalAIOptimWrapper', clip_grad)
        plugin['max_norm'] = _plain_norm(clip_grad, 'ColossalAIOptimWrapper')
        return True
    return False


def refuse(wrapper: str, clip_grad: dict[str, Any]) -> None:
    """Raise for an optimizer wrapper that clips by itself, with the line to write instead."""
    rule = parse_clip_grad(clip_grad).outer
    line = FOREIGN_WRAPPERS[wrapper].format(norm=getattr(rule, 'max_norm', None) or 1.0)
    raise ClipConfigError(
        f'{wrapper} owns the gradients until the step and clips them itself; write {line}'
    )


def _plain_norm(clip_grad: dict[str, Any], wrapper: str) -> float:
    """The bound of a rule that is the global 2-norm and nothing else."""
    config = parse_clip_grad(clip_grad)
    rule = config.outer
    plain = (
        type(rule) is NormClip
        and rule.norm_type == 2
        and rule.min_norm is None
        and not rule.carry
        and len(config.router.routes) == 1
        and not config.drivers
        and 'nonfinite' not in config.raw
        and config.max_consecutive_skips is None
    )
    if not plain:
        line = FOREIGN_WRAPPERS[wrapper].format(norm='...')
        raise ClipConfigError(
            f'{wrapper} clips by the global 2-norm only, which is not what {config.raw} asks for: '
            f'give max_norm alone, as dict(max_norm=...), or write {line}'
        )
    return float(rule.max_norm)
