"""Parsing of a ``clip_grad`` config into rules, routes and the options common to all rules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..base import Clipper
from ..checks import ClipConfigError, check_choice, check_number, plain, suggest
from .registry import CLIPPERS
from .routes import Route, Router, Selector
from .schedules import ThresholdDriver, build_driver

NONFINITE_POLICIES = ('skip', 'zero', 'raise', 'off')
#: Keys that every rule takes beside its own.
COMMON_KEYS = ('exclude', 'rules', 'schedule', 'nonfinite', 'max_consecutive_skips')
#: Keys of torch.nn.utils.clip_grad_norm_ that a stock MMEngine config may hold.
_STOCK_KEYS = ('error_if_nonfinite', 'foreach')


class ClipConfig(NamedTuple):
    """A parsed ``clip_grad`` config.

    Attributes:
        router: the routes; the last one holds the outer rule.
        drivers: set the scheduled thresholds; one for each rule that has a schedule.
        nonfinite: ``'skip'``, ``'zero'``, ``'raise'`` or ``'off'``.
        max_consecutive_skips: end the run after this many skipped steps in a row, skipped by the
            engine or by a loss scaler; None: never.
        raw: a copy of the config before parsing.
    """

    router: Router
    drivers: list[ThresholdDriver]
    nonfinite: str
    max_consecutive_skips: int | None
    raw: dict[str, Any]

    @property
    def outer(self) -> Clipper:
        """The rule for the parameters that match no other route."""
        outer = self.router.routes[-1].clipper
        assert outer is not None  # only exclude makes routes without a rule, and never the last
        return outer


def parse_clip_grad(clip_grad: dict[str, Any]) -> ClipConfig:
    """Parse a ``clip_grad`` config; the dict is not changed.

    Args:
        clip_grad: ``type`` (a rule's name or alias), that rule's keys, and the keys common to
            all rules: ``exclude`` (list of regexes or ``dict(module=...)``), ``rules`` (list of
            ``dict(match=... or module=..., type=..., ...)``), ``schedule``,
            ``nonfinite='skip'|'zero'|'raise'|'off'``, ``max_consecutive_skips``. Without ``type``
            a dict is read as stock MMEngine reads it: ``clip_value`` makes it value clipping,
            anything else norm clipping.

    Raises:
        ClipConfigError: an invalid config; the message names the key and the valid keys.

    Example:
        >>> parse_clip_grad(dict(
        ...     type='AGC', clip_factor=0.01, exclude=['fc_cls'],
        ...     rules=[dict(match='^backbone', type='NormClip', max_norm=10)]))
    """
    if not isinstance(clip_grad, dict) or not clip_grad:
        what = 'an empty dict' if isinstance(clip_grad, dict) else repr(clip_grad)
        # The text before the comma is that of stock MMEngine's error.
        raise ClipConfigError(
            'If `clip_grad` is not None, it should be a dict with a rule and its keys, such as '
            f"dict(type='NormClip', max_norm=35); got {what}"
        )
    raw = _plain(clip_grad)
    cfg = copy.deepcopy(raw)
    common = {key: cfg.pop(key) for key in COMMON_KEYS if key in cfg}
    name = cfg.pop('type', None)
    if name is None:
        is_value = not {'clip_value', 'min', 'max'}.isdisjoint(cfg)
        name = 'ValueClip' if is_value else 'NormClip'
    name = name.__name__ if isinstance(name, type) else name
    CLIPPERS.get(name)

    nonfinite = common.get('nonfinite', 'skip')
    check_choice('nonfinite', nonfinite, NONFINITE_POLICIES)
    if name in ('NormClip', 'norm') and cfg.pop('error_if_nonfinite', False):
        nonfinite = 'raise'
    if name in ('NormClip', 'norm', 'ValueClip', 'value'):
        # Selects torch's implementation; this package has only one.
        cfg.pop('foreach', None)
    max_skips = common.get('max_consecutive_skips')
    check_number('max_consecutive_skips', max_skips, low=1, allow_none=True, integer=True)

    outer = _build_rule(name, cfg, 'clip_grad')
    routes = _excluded(common.get('exclude'))
    drivers = [build_driver(common.get('schedule'), outer), *outer.drivers]
    routes += _routes(common.get('rules'), name, cfg, drivers)
    routes.append(Route(None, outer, name))
    return ClipConfig(Router(routes), [d for d in drivers if d], nonfinite, max_skips, raw)


def _build_rule(name: str, kwargs: dict[str, Any], where: str) -> Clipper:
    valid = [*CLIPPERS.keys_of(name), *COMMON_KEYS]
    for key in kwargs:
        if key not in valid:
            # The registry's message does not list the common keys.
            others = [other for other in CLIPPERS if key in CLIPPERS.keys_of(other)]
            inherited = (
                f' {key!r} is a key of {", ".join(others)}: if it is inherited from _base_, '
                f'write clip_grad=dict(_delete_=True, type={name!r}, ...).'
                if others and where == 'clip_grad'
                else ''
            )
            raise ClipConfigError(
                f'{where}: {CLIPPERS.get(name).__name__} has no key {key!r}.'
                f'{suggest(key, valid)} Valid keys: {", ".join(valid)}.{inherited}'
            )
    return CLIPPERS.build(name, kwargs, where)


def _excluded(exclude: Any) -> list[Route]:
    if exclude is None:
        return []
    if isinstance(exclude, str | dict):
        exclude = [exclude]
    if not isinstance(exclude, list | tuple):
        raise ClipConfigError(
            f'clip_grad: exclude must be a list of regular expressions or dict(module=...), '
            f'got {exclude!r}'
        )
    routes = []
    for i, item in enumerate(exclude):
        where = f'clip_grad: exclude[{i}]'
        condition = dict(item) if isinstance(item, dict) else {'match': item}
        selector = _selector(condition, where)
        if condition:
            raise ClipConfigError(
                f"{where} has no key {next(iter(condition))!r}. Valid keys: 'match', 'module'"
            )
        routes.append(Route(selector, None, f'exclude[{i}]'))
    return routes


def _routes(
    rules: Any, outer_name: str, outer_kwargs: dict[str, Any], drivers: list[ThresholdDriver]
) -> list[Route]:
    if rules is None:
        return []
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, dict) for rule in rules):
        raise ClipConfigError(
            'clip_grad: rules must be a list of dict(match=regex, type=..., ...), such as '
            f"[dict(match='^backbone', type='AGC', clip_factor=0.01)], got {rules!r}"
        )
    routes = []
    for i, rule in enumerate(rules):
        where = f'clip_grad: rules[{i}]'
        kwargs = dict(rule)
        selector = _selector(kwargs, where)
        schedule = kwargs.pop('schedule', None)
        for key in COMMON_KEYS:
            if key in kwargs:
                raise ClipConfigError(f'{where}: {key!r} belongs to clip_grad itself')
        name = kwargs.pop('type', None)
        if name is None:
            # A route without a type is the outer rule with some of its keys changed.
            name, kwargs = outer_name, {**copy.deepcopy(outer_kwargs), **kwargs}
        clipper = _build_rule(name, kwargs, where)
        drivers += [build_driver(schedule, clipper), *clipper.drivers]
        routes.append(Route(selector, clipper, f'rules[{i}] {name}'))
    return routes


def _selector(condition: dict[str, Any], where: str) -> Selector:
    """Build a selector from the dict; its keys are removed from the dict."""
    return Selector(condition.pop('match', None), condition.pop('module', None), where)


def _plain(value: Any) -> Any:
    """A deep copy in built-in containers and numbers.

    No container of MMEngine, OmegaConf or yacs and no NumPy scalar may enter a checkpoint or the
    log.
    """
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = map(_plain, value)
        return tuple(items) if type(value) is tuple else list(items)
    return copy.deepcopy(plain(value))
