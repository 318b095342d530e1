"""Derives the predicate between two objects of a picture from geometry and color alone.

Predicates do not depend on the object classes, so a model cannot infer a predicate from the two
classes and has to use the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# `inside` requires that the inner box has at most this share of the outer box's area.
INSIDE_AREA = 0.5
# Boxes overlap (`in front of`) if they share at least this fraction of the smaller box.
OVERLAP = 0.08
# Objects are near if the gap between their boxes is at most this many mean object sizes.
NEAR_GAP = 0.75
# Objects are far apart from this gap on; only then are their sizes compared.
FAR_GAP = 0.9
# A direction is clear if the offset along one axis is at least this many times the other.
DIRECTION_RATIO = 1.6
# `larger than` requires at least this ratio of the areas.
LARGER_RATIO = 2.0

# If a predicate holds for (a, b), its inverse holds for (b, a).
INVERSE = {
    'left of': 'right of',
    'right of': 'left of',
    'above': 'below',
    'below': 'above',
    'in front of': 'behind',
    'behind': 'in front of',
    'inside': 'around',
    'around': 'inside',
    'same color as': 'same color as',
}

# Share of the true relations that is annotated. The shares differ on purpose: annotators of real
# data also use "left of" more often than "right of", and annotate incompletely.
ANNOTATED_SHARE = {
    'left of': 0.6,
    'right of': 0.25,
    'above': 0.6,
    'below': 0.25,
    'in front of': 0.6,
    'behind': 0.4,
    'inside': 0.6,
    'around': 0.4,
    'larger than': 0.7,
    'same color as': 0.45,
}


# Predicates from the head to the tail of a long-tailed set: one direction of each pair, then the
# other one, so that rare predicates look like frequent ones.
LONG_TAIL_ORDER = (
    *('left of', 'above', 'larger than', 'in front of', 'same color as'),
    *('right of', 'below', 'inside', 'behind', 'around'),
)


@dataclass(frozen=True)
class Thing:
    """Inputs of a predicate: full box (x1, y1, x2, y2) in pixels, draw order, color."""

    box: tuple[float, float, float, float]
    depth: int
    color: str

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def contains(outer: Thing, inner: Thing) -> bool:
    """Whether ``inner`` lies within the box of ``outer``, is drawn later and is much smaller."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = outer.box, inner.box
    within = ax1 <= bx1 and ay1 <= by1 and bx2 <= ax2 and by2 <= ay2
    return within and inner.depth > outer.depth and inner.area <= INSIDE_AREA * outer.area


def overlap(a: Thing, b: Thing) -> float:
    """Intersection of both boxes as a share of the smaller box."""
    w = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    h = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return max(w, 0.0) * max(h, 0.0) / min(a.area, b.area)


def relative_gap(a: Thing, b: Thing) -> float:
    """Distance between the boxes in units of the mean object size; 0 if they intersect."""
    dx = max(a.box[0] - b.box[2], b.box[0] - a.box[2], 0.0)
    dy = max(a.box[1] - b.box[3], b.box[1] - a.box[3], 0.0)
    return float(np.hypot(dx, dy)) / (0.5 * (a.area**0.5 + b.area**0.5))


def predicate_between(subject: Thing, other: Thing) -> str | None:
    """Predicate of an ordered pair, or None if no predicate clearly holds.

    The first true one of these: inside/around; in front of/behind (boxes overlap); same
    color as; left of/right of/above/below (near each other, the direction clear); larger than
    (far apart).
    """
    if contains(other, subject):
        return 'inside'
    if contains(subject, other):
        return 'around'
    if overlap(subject, other) >= OVERLAP:
        return 'in front of' if subject.depth > other.depth else 'behind'
    if subject.color == other.color:
        return 'same color as'
    gap = relative_gap(subject, other)
    if gap <= NEAR_GAP:
        dx, dy = (s - o for s, o in zip(subject.center, other.center, strict=True))
        if abs(dx) >= DIRECTION_RATIO * abs(dy):
            return 'left of' if dx < 0 else 'right of'
        if abs(dy) >= DIRECTION_RATIO * abs(dx):
            return 'above' if dy < 0 else 'below'
    elif gap >= FAR_GAP and subject.area >= LARGER_RATIO * other.area:
        return 'larger than'
    return None


def annotated_shares(long_tail: float | None = None) -> dict[str, float]:
    """Share of the true relations that is annotated, for each predicate.

    Args:
        long_tail: ``ANNOTATED_SHARE`` of the i-th of ``LONG_TAIL_ORDER`` is multiplied by
            ``long_tail ** (-i / 9)``. None: it is not changed.
    """
    if long_tail is None:
        return ANNOTATED_SHARE
    last = len(LONG_TAIL_ORDER) - 1
    factors = {name: long_tail ** (-i / last) for i, name in enumerate(LONG_TAIL_ORDER)}
    return {name: share * factors[name] for name, share in ANNOTATED_SHARE.items()}


def annotate(
    things: list[Thing], rng: np.random.Generator, shares: dict[str, float] = ANNOTATED_SHARE
) -> list[tuple[int, int, str]]:
    """Sample annotations from the true relations, incompletely like a human annotator.

    At most one of the two directions of a pair is annotated.

    Returns:
        list[tuple]: (index of subject, index of object, predicate).
    """
    relations = []
    for i in range(len(things)):
        for j in range(i + 1, len(things)):
            draw = rng.random()
            for a, b in ((i, j), (j, i)):
                predicate = predicate_between(things[a], things[b])
                if predicate is None:
                    continue
                share = shares[predicate]
                if draw < share:
                    relations.append((a, b, predicate))
                    break
                draw -= share
    return relations
