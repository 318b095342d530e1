"""Positions of nodes and edge labels in a drawn graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Curvature of an edge as a share of its length. Opposite edges of a pair curve apart. A missed edge
# curves more, to stay separate from another edge of the same direction.
BOW = {'plain': 0.16, 'true': 0.16, 'extra': 0.16, 'missed': 0.3}
# Candidate positions of a label along its edge, in order of preference.
PLACES = (0.5, 0.42, 0.58, 0.35, 0.65, 0.28, 0.72)


def circle_layout(centers: np.ndarray) -> np.ndarray:
    """Place nodes on the unit circle, ordered by angle around the mean of the object centres.

    Args:
        centers: (N, 2) x, y of the objects, y pointing down.

    Returns:
        (N, 2) x, y, y pointing up; evenly spaced, so that ten names fit.
    """
    count = len(centers)
    if count == 0:
        return np.zeros((0, 2))
    offset = centers - centers.mean(axis=0)
    angles = np.arctan2(-offset[:, 1], offset[:, 0])
    order = np.argsort(angles, kind='stable')
    places = 2 * np.pi * np.arange(count) / count
    # Rotate the circle so that nodes are as close as possible to their angle in the picture.
    turn = np.angle(np.exp(1j * (angles[order] - places)).mean()) if count > 1 else 0.0
    result = np.empty((count, 2))
    result[order] = np.stack([np.cos(places + turn), np.sin(places + turn)], axis=1)
    return result


def edge_curve(start: np.ndarray, end: np.ndarray, kind: str) -> np.ndarray:
    """Control point (2,) of the quadratic Bezier curve of an edge from ``start`` to ``end``."""
    along = end - start
    return (start + end) / 2 + BOW[kind] * np.array([along[1], -along[0]])


def point_on(start: np.ndarray, control: np.ndarray, end: np.ndarray, t: float) -> np.ndarray:
    """Point (2,) of a quadratic Bezier curve at ``t`` in [0, 1]."""
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def place_labels(
    curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    sizes: np.ndarray,
    obstacles: np.ndarray,
) -> np.ndarray:
    """Place each label on its curve where it overlaps least with nodes and earlier labels.

    Args:
        curves: E curves, each with start, control and end point.
        sizes: (E, 2) width and height of the labels, in the units of the points.
        obstacles: (K, 4) boxes x1, y1, x2, y2 of the node names, to be kept free.

    Returns:
        (E, 2) centres of the labels.
    """
    taken = [*obstacles]
    result = np.zeros((len(curves), 2))
    for i, (curve, size) in enumerate(zip(curves, sizes, strict=True)):
        best, least = (np.zeros(2), np.zeros(4)), np.inf
        for place in PLACES:
            center = point_on(*curve, place)
            box = np.concatenate([center - size / 2, center + size / 2])
            covered = sum(_common_area(box, other) for other in taken)
            if covered < least:
                best, least = (center, box), covered
            if covered == 0:
                break
        result[i] = best[0]
        taken.append(best[1])
    return result


def _common_area(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return float(max(width, 0.0) * max(height, 0.0))
