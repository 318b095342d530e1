"""Training engines with clipping of their own: DeepSpeed, ColossalAI, Apex.

These engines own the gradients between backward and step, so that a hook on the optimizer would see
parts of them, scaled gradients, or none. A rule that equals the engine's own clipping becomes the
engine's setting. Any other rule raises an error with the line to write instead.
"""

from __future__ import annotations

from typing import Any, NoReturn

from mmengine.config import Config

from ..clipping.checks import ClipConfigError
from ..clipping.config.parse import parse_clip_grad
from ..clipping.rules.norm_clip import NormClip

#: Wrappers whose engine owns the gradients, and what to write instead.
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
    """Write a norm rule into the setting of the config's training engine, if it has such an engine.

    DeepSpeed's ``gradient_clipping`` is the global 2-norm. DeepSpeed also decides what happens to a
    non-finite step, so that an explicit ``nonfinite`` cannot be kept.

    Args:
        cfg: the config; it is changed in place.
        clip_grad: the rule and its keys.

    Returns:
        bool: whether the rule was handed over. False: the config has no such engine and is
        unchanged.

    Raises:
        ClipConfigError: the engine cannot apply the rule; the message gives the line to write.
    """
    strategy: Any = cfg.get('strategy')
    kind: Any = strategy.get('type') if isinstance(strategy, dict) else strategy
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


def refuse(wrapper: str, clip_grad: dict[str, Any]) -> NoReturn:
    """Raise for an optimizer wrapper of such an engine, with the line to write instead.

    Raises:
        ClipConfigError: always.
    """
    rule = parse_clip_grad(clip_grad).outer
    line = FOREIGN_WRAPPERS[wrapper].format(norm=getattr(rule, 'max_norm', None) or 1.0)
    raise ClipConfigError(
        f'{wrapper} owns the gradients until the step and clips them itself; write {line}'
    )


def _plain_norm(clip_grad: dict[str, Any], wrapper: str) -> float:
    """The bound of a rule that clips by the global 2-norm and does nothing else.

    Raises:
        ClipConfigError: any other rule.
    """
    config = parse_clip_grad(clip_grad)
    rule: Any = config.outer
    is_plain = (
        type(rule) is NormClip
        and rule.norm_type == 2
        and rule.min_norm is None
        and not rule.carry
        and len(config.router.routes) == 1
        and not config.drivers
        and 'nonfinite' not in config.raw
        and config.max_consecutive_skips is None
    )
    if not is_plain:
        line = FOREIGN_WRAPPERS[wrapper].format(norm='...')
        raise ClipConfigError(
            f'{wrapper} clips by the global 2-norm only, which is not what {config.raw} asks for: '
            f'give max_norm alone, as dict(max_norm=...), or write {line}'
        )
    return float(rule.max_norm)
