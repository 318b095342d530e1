"""Predicate changes under image flips: "left of" becomes "right of"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Words that make a predicate depend on the axis. They only serve to refuse a flip if the metainfo
# does not list the predicates to swap; the swapped pairs always come from the metainfo.
_WORDS = {
    'horizontal': {'left', 'right', 'leftmost', 'rightmost', 'east', 'west'},
    'vertical': {
        *('above', 'below', 'over', 'under', 'beneath', 'underneath', 'atop'),
        *('top', 'bottom', 'up', 'down', 'upper', 'lower'),
    },
}
#: Metainfo key with the swapped pairs of each axis.
FLIP_KEYS = {
    'horizontal': 'flip_predicate_pairs',
    'vertical': 'vertical_flip_predicate_pairs',
}


@dataclass(frozen=True)
class PredicateFlips:
    """Permutation of predicate labels under a flip along each axis.

    Args:
        predicates: Names of the P predicates.
        horizontal: P labels; label ``p`` becomes ``horizontal[p]``. None: unknown, although a
            predicate name contains a word such as *left*.
        vertical: The same for vertical flips.
    """

    predicates: tuple[str, ...]
    horizontal: tuple[int, ...] | None
    vertical: tuple[int, ...] | None

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any]) -> PredicateFlips:
        """Read ``predicates``, ``flip_predicate_pairs`` and ``vertical_flip_predicate_pairs``.

        A missing key means that no predicates swap, unless a predicate name contains a word such
        as *left* or *above*: then flips along this axis raise. An empty list states that no
        predicates swap.

        Raises:
            ValueError: A pair has an unknown predicate, or a predicate occurs twice.
        """
        predicates = tuple(metainfo.get('predicates', ()))
        return cls(
            predicates,
            *(_permutation(predicates, metainfo.get(key), axis) for axis, key in FLIP_KEYS.items()),
        )

    def apply(self, labels: np.ndarray, direction: str) -> np.ndarray:
        """Map predicate labels to those after a flip.

        Args:
            labels: (R,) int.
            direction: 'horizontal', 'vertical' or 'diagonal' (both).

        Returns:
            (R,) int64.

        Raises:
            ValueError: The metainfo does not list the predicates to swap, or ``direction`` is
                unknown.
        """
        axes = ('horizontal', 'vertical') if direction == 'diagonal' else (direction,)
        for axis in axes:
            if axis not in FLIP_KEYS:
                raise ValueError(
                    "flip direction must be 'horizontal', 'vertical' or 'diagonal', "
                    f'got {direction!r}'
                )
            table = getattr(self, axis)
            if table is None:
                named = [p for p in self.predicates if _names_axis(p, axis)]
                raise ValueError(
                    f'a {direction} flip would invalidate the predicates {named}: list the pairs '
                    f'that swap in the metainfo of the data set, {FLIP_KEYS[axis]}='
                    "[('left of', 'right of')] for example, or [] if none swaps"
                )
            # A negative label is that of an ignored relation.
            labels = np.where(labels < 0, labels, np.asarray(table, np.int64)[labels])
        return labels

    def oriented(self) -> np.ndarray:
        """(P,) bool: predicates that a flip changes or may change."""
        identity = np.arange(len(self.predicates))
        result = np.zeros(len(self.predicates), bool)
        for axis in FLIP_KEYS:
            table = getattr(self, axis)
            if table is None:
                result |= np.array([_names_axis(p, axis) for p in self.predicates], bool)
            else:
                result |= np.asarray(table, np.int64) != identity
        return result


def _names_axis(predicate: str, axis: str) -> bool:
    return bool(_WORDS[axis] & set(re.findall('[a-z]+', predicate.lower())))


def _permutation(
    predicates: tuple[str, ...], pairs: Sequence[Sequence[str]] | None, axis: str
) -> tuple[int, ...] | None:
    if pairs is None:
        unknown = any(_names_axis(p, axis) for p in predicates)
        return None if unknown else tuple(range(len(predicates)))
    key = FLIP_KEYS[axis]
    table = list(range(len(predicates)))
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f'{key} must hold pairs of predicate names, got {pair!r}')
        for name in pair:
            if name not in predicates:
                raise ValueError(
                    f'{key} names {name!r}, which is not a predicate; valid: {list(predicates)}'
                )
        a, b = (predicates.index(name) for name in pair)
        if a == b or table[a] != a or table[b] != b:
            raise ValueError(f'{key} names a predicate of the pair {tuple(pair)} twice')
        table[a], table[b] = b, a
    return tuple(table)
