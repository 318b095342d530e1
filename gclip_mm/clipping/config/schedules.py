"""Schedules: a threshold that changes over iterations or epochs.

Names and meanings follow MMEngine's parameter schedulers (``begin``, ``end``, ``by_epoch``, and the
keys of each type), but a schedule here is a closed-form function of the step. It has no state to
save or to restore.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from ..base import Clipper
from ..checks import ClipConfigError, check_choice, check_number, suggest


def _constant(t: int, span: float, factor: float = 1.0 / 3) -> float:
    # MMEngine's scheduler returns to the full value at the last step of its span.
    return factor if t < max(span - 1, 1) else 1.0


def _linear(t: int, span: float, start_factor: float = 1.0 / 3, end_factor: float = 1.0) -> float:
    return start_factor + (end_factor - start_factor) * min(t / max(span - 1, 1), 1.0)


def _cosine(t: int, span: float, eta_min_ratio: float = 0.0, T_max: int | None = None) -> float:
    period = T_max if T_max is not None else span
    return eta_min_ratio + (1 - eta_min_ratio) * (1 + math.cos(math.pi * t / period)) / 2


def _step(t: int, span: float, step_size: int = 1, gamma: float = 0.1) -> float:
    return gamma ** (t // step_size)


def _exponential(t: int, span: float, gamma: float = 0.1) -> float:
    return gamma**t


_FORMS: dict[str, Callable[..., float]] = {
    'constant': _constant,
    'linear': _linear,
    'cosine': _cosine,
    'step': _step,
    'exponential': _exponential,
}
#: MMEngine's class names, accepted in place of the types.
_ALIASES = {
    'ConstantParamScheduler': 'constant',
    'LinearParamScheduler': 'linear',
    'CosineAnnealingParamScheduler': 'cosine',
    'StepParamScheduler': 'step',
    'ExponentialParamScheduler': 'exponential',
    'ConstantLR': 'constant',
    'LinearLR': 'linear',
    'CosineAnnealingLR': 'cosine',
    'StepLR': 'step',
    'ExponentialLR': 'exponential',
}


class Schedule:
    """A factor on one threshold, within ``[begin, end)``.

    Before ``begin`` the factor is 1. After ``end`` it keeps its last value, as in MMEngine's
    schedulers. Factors of several schedules on one key multiply, so a warm-up is a second entry.

    Args:
        type: ``constant`` (``factor``), ``linear`` (``start_factor``, ``end_factor``), ``cosine``
            (``eta_min_ratio``, ``T_max``), ``step`` (``step_size``, ``gamma``) or ``exponential``
            (``gamma``); MMEngine's class names are accepted too.
        param_name: the config key of the threshold; None: the rule's first threshold.
        begin: first iteration or epoch.
        end: iteration or epoch after the last; None: never (``linear`` and ``cosine`` need one, or
            ``T_max``).
        by_epoch: count epochs instead of iterations.
        **kwargs: keys of the type.

    Raises:
        ClipConfigError: an unknown type or key, or a value out of range.

    Example:
        >>> clip_grad = dict(type='NormClip', max_norm=1.0, schedule=[
        ...     dict(type='linear', start_factor=0.1, begin=0, end=500),
        ...     dict(type='cosine', eta_min_ratio=0.1, begin=500, end=10000)])
    """

    def __init__(
        self,
        type: str,
        param_name: str | None = None,
        begin: int = 0,
        end: int | None = None,
        by_epoch: bool = False,
        **kwargs: Any,
    ) -> None:
        kind = _ALIASES.get(type, type)
        if kind not in _FORMS:
            raise ClipConfigError(
                f'clip_grad: schedule has no type {type!r}.{suggest(type, list(_FORMS))} '
                f'Valid types: {", ".join(_FORMS)}'
            )
        check_number('schedule begin', begin, low=0, integer=True)
        check_number('schedule end', end, low=begin, open_low=True, allow_none=True, integer=True)
        check_choice('schedule by_epoch', by_epoch, (True, False))
        valid = list(inspect.signature(_FORMS[kind]).parameters)[2:]
        for key, value in kwargs.items():
            if key not in valid:
                common = ['type', 'param_name', 'begin', 'end', 'by_epoch']
                raise ClipConfigError(
                    f'clip_grad: schedule {kind!r} has no key {key!r}.'
                    f'{suggest(key, valid + common)} Valid keys: {", ".join(valid + common)}'
                )
            whole = key in ('T_max', 'step_size')
            check_number(f'schedule {key}', value, low=1 if whole else 0, integer=whole)
        if (kind == 'linear' and end is None) or (
            kind == 'cosine' and end is None and 'T_max' not in kwargs
        ):
            raise ClipConfigError(f"clip_grad: schedule {kind!r} needs the key 'end'")
        self.kind = kind
        self.param_name = param_name
        self.begin = begin
        self.end = math.inf if end is None else end
        self.by_epoch = by_epoch
        self.kwargs = kwargs

    def factor(self, now: int) -> float:
        """The factor at iteration or epoch ``now``, counted from 0."""
        if now < self.begin:
            return 1.0
        # A constant factor ends with its span; every other form keeps its last value.
        last = now if self.kind == 'constant' else min(now, self.end - 1)
        return _FORMS[self.kind](int(last - self.begin), self.end - self.begin, **self.kwargs)


class ThresholdDriver:
    """Sets a rule's thresholds to their scheduled values.

    Args:
        clipper: the rule.
        schedules: its schedules; no ``param_name`` is None.
    """

    def __init__(self, clipper: Clipper, schedules: list[Schedule]) -> None:
        self._clipper = clipper.core
        self._by_key: dict[str, list[Schedule]] = {}
        for schedule in schedules:
            assert schedule.param_name is not None  # resolved by build_driver
            self._by_key.setdefault(schedule.param_name, []).append(schedule)
        self._base = {key: getattr(clipper.core, key) for key in self._by_key}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    @property
    def needs_epoch(self) -> bool:
        """Whether any schedule counts epochs."""
        return any(s.by_epoch for group in self._by_key.values() for s in group)

    def set(self, iteration: int, epoch: int) -> None:
        """Set the thresholds for the next step.

        Args:
            iteration: number of steps before it.
            epoch: number of epochs before its own.
        """
        for key, schedules in self._by_key.items():
            factor = 1.0
            for schedule in schedules:
                factor *= schedule.factor(epoch if schedule.by_epoch else iteration)
            setattr(self._clipper, key, self._base[key] * factor)


def build_driver(cfg: Any, clipper: Clipper) -> ThresholdDriver:
    """Build the driver of a rule from its ``schedule`` config: a dict, a list of dicts, or None.

    Raises:
        ClipConfigError: an invalid schedule, or a ``param_name`` that the rule does not have.
    """
    if cfg is None:
        return ThresholdDriver(clipper, [])
    items = [cfg] if isinstance(cfg, dict) else cfg
    if not isinstance(items, list | tuple) or not all(
        isinstance(item, dict) and 'type' in item for item in items
    ):
        raise ClipConfigError(
            "clip_grad: schedule must be a dict such as dict(type='linear', start_factor=0.1, "
            f'end=500), or a list of them, got {cfg!r}'
        )
    core = clipper.core
    usable = [key for key in core.thresholds if _is_in_use(getattr(core, key, None))]
    name = core.name
    if items and not usable:
        raise ClipConfigError(f'clip_grad: {name} has no threshold that a schedule can change')
    schedules = []
    for item in items:
        schedule = Schedule(**item)
        if schedule.param_name is None:
            schedule.param_name = usable[0]
        if schedule.param_name not in usable:
            raise ClipConfigError(
                f'clip_grad: schedule: {name} has no threshold {schedule.param_name!r} in use.'
                f'{suggest(schedule.param_name, usable)} Valid: {", ".join(usable)}'
            )
        schedules.append(schedule)
    return ThresholdDriver(clipper, schedules)


def _is_in_use(threshold: float | None) -> bool:
    return threshold is not None and math.isfinite(threshold)
