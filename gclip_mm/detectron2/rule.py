"""The forms in which a Detectron2 script gives a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from ..clipping.checks import ClipConfigError
from ..clipping.config.inline import parse_inline


def add_gclip_config(cfg: CfgNode) -> None:
    """Add ``SOLVER.GCLIP`` to a config, with the value '': no clipping.

    Example:
        >>> cfg = get_cfg()
        >>> add_gclip_config(cfg)
        >>> cfg.merge_from_list(['SOLVER.GCLIP', 'type=AGC,clip_factor=0.01'])
    """
    cfg.SOLVER.GCLIP = ''


def read_rule(rule: Any) -> dict[str, Any] | None:
    """The ``clip_grad`` dict of a rule in any of the forms that :func:`clip` takes.

    Returns:
        dict or None: None if ``rule`` is a ``cfg`` whose ``SOLVER.GCLIP`` is empty.

    Raises:
        ClipConfigError: none of these forms, or a ``cfg`` without ``SOLVER.GCLIP``.
    """
    if isinstance(rule, CfgNode) and 'SOLVER' in rule:
        if 'GCLIP' not in rule.SOLVER:
            raise ClipConfigError(
                'cfg has no SOLVER.GCLIP: call gclip_mm.detectron2.add_gclip_config(cfg) after '
                'get_cfg()'
            )
        rule = rule.SOLVER.GCLIP
        if rule == '':
            return None
    if isinstance(rule, str) and rule:
        return parse_inline(rule) if '=' in rule else {'type': rule}
    if isinstance(rule, Mapping) and rule:
        return dict(rule)
    raise ClipConfigError(
        "the rule must be a dict such as dict(type='AGC', clip_factor=0.01), a string such as "
        f"'Auto' or 'type=AGC,clip_factor=0.01', or the cfg of Detectron2; got {rule!r}"
    )
