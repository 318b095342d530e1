"""The advice to use ``Auto``, and what a threshold set by hand does in comparison."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .advice import Advice
from .replay import Effect

#: Differences below this share are rounding.
_SAME = 0.01


class Comparison(NamedTuple):
    """A rule beside ``Auto``, over the same recorded steps.

    Attributes:
        longer: norm after the rule over the norm after ``Auto``, in the median step.
        over: share of the units, of those with a gradient, that keep more than ``Auto`` leaves
            them.
        under: share of the units that keep less.
        furthest: 99th percentile over the units of what they keep, over what ``Auto`` leaves them.
    """

    longer: float
    over: float
    under: float
    furthest: float


def compare(effect: Effect, auto: Effect) -> Comparison | None:
    """Compare a rule with ``Auto``; None if one acts on gradients and the other on updates."""
    if effect.of_updates != auto.of_updates:
        return None
    has_norm = auto.after > 0
    ratios = effect.coefs[auto.live] / auto.coefs[auto.live]
    return Comparison(
        float(np.median(effect.after[has_norm] / auto.after[has_norm])),
        float((ratios > 1 + _SAME).mean()),
        float((ratios < 1 - _SAME).mean()),
        float(np.percentile(ratios, 99)),
    )


def advise_auto(effect: Effect, lr: float, momentum: float) -> Advice:
    """The advice to clip by ``Auto``, with what it does to the recorded steps at a rate.

    Args:
        effect: what ``Auto`` does to the steps.
        lr: the base learning rate.
        momentum: of the optimizer.
    """
    assert effect.units is not None  # Auto is a rule by units
    after, before = spread(effect.after), float(np.median(effect.before))
    if effect.of_updates:
        why = (
            'The step of this optimizer is not proportional to the gradient, so that Auto bounds '
            f'the update. At lr {lr:g} it would have shortened the movement of {effect.units:.0%} '
            f'of the units, in {effect.steps:.0%} of the recorded steps. The weights then move by '
            f'{_range(after)} instead of {before:.3g} in a step.'
        )
    else:
        why = (
            'No threshold to set, and none to set again at another rate: Auto reads the '
            f"optimizer's. At lr {lr:g} and momentum {momentum:g} it would have held back "
            f'{effect.units:.0%} of the units, in {effect.steps:.0%} of the recorded steps. That '
            f'amounts to a global norm of {_range(after)}, where the gradient has {before:.3g}.'
        )
    if not effect.units:
        why += ' At this rate it is there for spikes alone.'
    return Advice('auto', dict(type='Auto'), why, effect.units)


def explain(comparison: Comparison | None) -> str:
    """The comparison in a few sentences."""
    if comparison is None:
        return 'Auto bounds the update of this optimizer: its numbers are not those of a gradient.'
    text = f'After it the gradient is {comparison.longer:.3g} times as long as after Auto'
    if comparison.over:
        text += (
            f'. {comparison.over:.0%} of the units may move further than with Auto, one unit in a '
            f'hundred at least {comparison.furthest:.3g} times as far'
        )
    else:
        text += '. No unit may move further than with Auto'
    return f'{text}; {comparison.under:.0%} move less far.'


def describe_effect(effect: Effect) -> dict[str, Any]:
    """The numbers of an effect, for the JSON file."""
    return {
        'steps': effect.steps,
        'units': effect.units,
        'of': 'updates' if effect.of_updates else 'gradients',
        'norm_before': spread(effect.before),
        'norm_after': spread(effect.after),
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """The 10th, 50th and 90th percentile."""
    return {f'p{q}': float(np.percentile(values, q)) for q in (10, 50, 90)}


def _range(norms: dict[str, float]) -> str:
    low, middle, high = (f'{norms[key]:.3g}' for key in ('p10', 'p50', 'p90'))
    return f'{middle} in the median step (80% between {low} and {high})'
