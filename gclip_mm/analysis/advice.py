"""Thresholds for four clipping rules, from statistics of unclipped steps and a learning rate.

``Auto``, which the advisor recommends, has no threshold; :mod:`.against_auto` compares the rules
with it.

For optimizers whose step is proportional to the gradient (SGD), the thresholds bound the change of
the weights, not the length of the gradient. A unit (a filter, a row) whose gradient norm is ``r``
times its weight norm moves by ``lr * r`` of the weights in one step, and by up to
``lr * r / (1 - momentum)`` before momentum has forgotten that step. This *reach* may be at most
``REACH`` of the weights. AGC bounds each unit by definition. The other rules keep the bound for
most units, in the median step: nine in ten by value, nineteen in twenty by norm. The remaining
units have very small weights and have to move far. So every threshold is inversely proportional to
the learning rate.

By norm, nine in ten was enough for most detectors that were tried. For scene-graph models that
bound is too loose: no run was lost to NaN, but the models learned little. A possible cause is that
their units are more unequal (``results/scene_graph/README.md``).

If the gradients keep the bound without clipping, the threshold is ``MARGIN`` times the largest
value seen, and clipping acts on spikes alone. A clamp is set lower: when all elements explode, each
of millions of elements passes at the clamp. It is therefore set so that a gradient ``SPIKE`` times
the usual one is no longer than that margin after clamping.

For optimizers that divide by a running size of the gradient (Adam and similar) the step does not
depend on the scale of the gradient, and the advice does not depend on the learning rate: a
threshold only decides which steps count as a spike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .gradient_stats import GradientStats, octave_sizes

#: Largest share of a unit's weights that a step may change, momentum included.
REACH = 0.05
#: Share of the units for which that holds, by value and by norm.
UNITS_BY_VALUE, UNITS_BY_NORM = 0.9, 0.95
#: Factor between the largest value seen and a threshold that is for spikes alone.
MARGIN = 2.0
#: Size of a spike, relative to the usual gradient, that a clamp must make harmless.
SPIKE = 1000.0
#: Optimizers whose step is proportional to the gradient.
PROPORTIONAL = ('SGD', 'ASGD', 'FusedSGD')


class Advice(NamedTuple):
    """A rule and its threshold.

    Attributes:
        name: ``auto``, ``value``, ``norm``, ``agc`` or ``zclip``.
        clip_grad: the config of the rule.
        reason: the reason for its threshold, in words.
        clipped: share of the recorded elements (value), steps (norm, and ``max_norm`` of ZClip) or
            units (Auto, AGC) that the rule would have clipped.
    """

    name: str
    clip_grad: dict[str, Any]
    reason: str
    clipped: float


def advise(
    stats: GradientStats,
    lr: float,
    momentum: float = 0.0,
    proportional: bool = True,
    reach: float = REACH,
) -> list[Advice]:
    """Thresholds for the four rules.

    Args:
        stats: statistics of unclipped steps.
        lr: the base learning rate to train with, above 0.
        momentum: of the optimizer, at least 0 and below 1.
        proportional: whether the step of the optimizer is proportional to the gradient.
        reach: largest share of its weights that a step may move a unit by, above 0.

    Raises:
        ValueError: no step with a gradient, or a number out of range.
    """
    if not lr > 0 or not 0 <= momentum < 1 or not reach > 0:
        raise ValueError(
            f'lr and reach must be above 0 and momentum in [0, 1), got {lr}, {reach}, {momentum}'
        )
    stats = with_gradient(stats)
    if not proportional:
        return _advise_scale_free(stats)
    ratio = reach * (1 - momentum) / lr
    return _advise_proportional(stats, lr, momentum, reach, ratio)


def _advise_proportional(
    stats: GradientStats, lr: float, momentum: float, reach: float, ratio: float
) -> list[Advice]:
    law = f'{reach:g} * (1 - {momentum:g}) / {lr:g}'
    allowed = (
        f'At lr {lr:g} and momentum {momentum:g} a gradient of {ratio:.3g} times the weights '
        f'({law}) moves them by {reach:.0%} before momentum forgets it.'
    )
    norm, usual = norm_bound(stats, ratio), float(np.median(stats.norm))
    max_norm, norm_why = _bounded(
        norm,
        float(stats.norm.max()),
        f'In the median step nineteen units in twenty stay below that if the norm is at most '
        f'{norm:.3g}; unclipped it is {usual:.3g} in the median.',
        'norm',
    )
    value = value_bound(stats, ratio)
    clip_value = spike_clamp(stats)
    value_why = (
        f'At this rate clamping is there for spikes alone: a gradient {SPIKE:g} times the usual, '
        f'clamped to it, is no longer than {MARGIN:g} times the longest seen, '
        f'{stats.norm.max():.3g}.'
    )
    if value <= clip_value:
        clip_value = value
        value_why = (
            'In the median step nine units in ten stay below that if no element exceeds '
            f'{value:.3g}.'
        )
    factor, agc_why = _bounded(
        ratio,
        float(np.percentile(stats.unit_ratio, 99.9)),
        'AGC bounds every unit by it.',
        'unit (of 99.9%)',
    )
    return [
        _value(stats, clip_value, f'{allowed} {value_why}'),
        _norm(stats, max_norm, f'{allowed} {norm_why}'),
        _agc(stats, factor, f'{allowed} {agc_why}'),
        _zclip(
            stats,
            max_norm,
            'Spikes are found by their z-score, with the defaults of the paper; max_norm is that '
            'of norm clipping, for what is too large at this rate without being a spike.',
        ),
    ]


def _advise_scale_free(stats: GradientStats) -> list[Advice]:
    note = "The optimizer divides by the gradient's running size, so that the rate plays no part:"
    norm = float(np.percentile(stats.norm, 90))
    size = float(np.percentile(_largest_elements(stats), 90))
    factor = float(np.percentile(stats.unit_ratio, 99))
    top = MARGIN * float(stats.norm.max())
    return [
        _value(stats, size, f'{note} the largest element of one step in ten is above it.'),
        _norm(stats, norm, f'{note} the norm of one step in ten is above it.'),
        _agc(
            stats,
            factor,
            f'{note} one unit in a hundred is above it. AGC is meant for SGD: with such an '
            'optimizer it distorts the running size and tends to hurt; prefer norm or ZClip.',
        ),
        _zclip(
            stats,
            top,
            f'{note} spikes are found by their z-score, with the defaults of the paper; max_norm '
            f'is {MARGIN:g} times the largest norm seen.',
        ),
    ]


# -- the bounds ----------------------------------------------------------------------------------
def norm_bound(stats: GradientStats, ratio: float) -> float:
    """The norm at which ``UNITS_BY_NORM`` have at most ``ratio``, in the median step."""
    reached = np.quantile(stats.unit_ratio, UNITS_BY_NORM, axis=1)
    # A step in which most units have no gradient gives no bound.
    seen = reached > 0
    if not seen.any():
        return float('inf')
    return float(np.median(ratio * stats.norm[seen] / reached[seen]))


def value_bound(stats: GradientStats, ratio: float) -> float:
    """The clamp at which ``UNITS_BY_VALUE`` have at most ``ratio``, in the median step."""
    ratios, owners = stats.unit_ratio, stats.unit_param[stats.scaled]

    def reached(clip_value: float) -> float:
        kept = stats.value_clipped(clip_value) / np.maximum(stats.grad, 1e-300)
        units = ratios * kept[:, owners]
        return float(np.median(np.quantile(units, UNITS_BY_VALUE, axis=1)))

    return _solve(reached, ratio, largest_element(stats))


def spike_clamp(stats: GradientStats) -> float:
    """The clamp that makes ``SPIKE`` times the usual gradient no longer than the margin."""

    def norm(clip_value: float) -> float:
        # Clamping k * g to c is k times clamping g to c / k.
        clamped = SPIKE * stats.value_clipped(clip_value / SPIKE)
        return float(np.median(np.linalg.norm(clamped, axis=1)))

    margin = MARGIN * float(stats.norm.max())
    return _solve(norm, margin, SPIKE * largest_element(stats))


def largest_element(stats: GradientStats) -> float:
    """The size of the largest element seen, to a quarter of an octave."""
    return float(_largest_elements(stats).max())


def _largest_elements(stats: GradientStats) -> np.ndarray:
    """(S,) the size of the largest element of each step."""
    filled = stats.elements.sum(axis=1) > 0
    return np.where(filled, octave_sizes(), 0.0).max(axis=1)


def _solve(rising: Callable[[float], float], target: float, top: float) -> float:
    """Where an increasing function reaches the target, by bisection; inf if not below ``top``."""
    if rising(top) <= target:
        return float('inf')
    low, high = np.log(top) - 60.0, np.log(top)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(np.exp(middle)) <= target else (low, middle)
    return float(np.exp(low))


def _bounded(bound: float, seen: float, why: str, what: str) -> tuple[float, str]:
    """The bound and its reason; if it would never act, ``MARGIN`` times the largest value seen."""
    if bound <= MARGIN * seen:
        return bound, why
    return MARGIN * seen, (
        f'The largest {what} seen, {seen:.3g}, is well below that bound: at this rate clipping is '
        f'there for spikes alone, from {MARGIN:g} times what was seen.'
    )


def with_gradient(stats: GradientStats) -> GradientStats:
    """The steps that have a gradient.

    Raises:
        ValueError: no step has one, or no parameter has several units.
    """
    keep = stats.norm > 0
    if not keep.any():
        raise ValueError('no recorded step has a gradient')
    if not stats.unit_ratio.shape[1]:
        raise ValueError('the model has no weights with units (filters, rows) to compare with')
    return stats.of_steps(keep)


# -- the configs ---------------------------------------------------------------------------------
def _value(stats: GradientStats, clip_value: float, reason: str) -> Advice:
    clip_value = two_digits(clip_value)
    counts = stats.elements.sum(axis=(0, 1))
    over = float(counts[octave_sizes() > clip_value].sum() / max(counts.sum(), 1))
    return Advice('value', dict(type='ValueClip', clip_value=clip_value), reason, over)


def _norm(stats: GradientStats, max_norm: float, reason: str) -> Advice:
    max_norm = two_digits(max_norm)
    over = float((stats.norm > max_norm).mean())
    return Advice('norm', dict(type='NormClip', max_norm=max_norm), reason, over)


def _agc(stats: GradientStats, factor: float, reason: str) -> Advice:
    factor = two_digits(factor)
    over = float((stats.unit_ratio > factor).mean())
    return Advice('agc', dict(type='AGC', clip_factor=factor), reason, over)


def _zclip(stats: GradientStats, max_norm: float, reason: str) -> Advice:
    max_norm = two_digits(max_norm)
    over = float((stats.norm > max_norm).mean())
    config = dict(type='ZClip', alpha=0.97, z_threshold=2.5, warmup_steps=25, max_norm=max_norm)
    return Advice('zclip', config, reason, over)


def two_digits(number: float) -> float:
    """Round to two significant digits; a few steps do not support more."""
    return float(f'{number:.2g}')
