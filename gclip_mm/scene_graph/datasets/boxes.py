"""Checks that COCO boxes are finite and lie in their image as [x, y, width, height]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Pixels by which a box may exceed its image; some tools count pixels from 1.
_MARGIN = 1
#: A larger share of boxes outside their image is reported.
_MOST_OUTSIDE = 0.1


def box_array(annotations: Sequence[Mapping[str, Any]], source: str) -> np.ndarray:
    """Collect the boxes of all annotations.

    Args:
        annotations: COCO annotations.
        source: Name of the file in error messages.

    Returns:
        (N, 4) float64: x, y, width, height in pixels.

    Raises:
        ValueError: A box is not four finite numbers; the message names its annotation.
    """
    # Checked at once, because a loop over the million boxes of Visual Genome takes seconds.
    boxes = [annotation['bbox'] for annotation in annotations]
    if not _are_numbers(boxes, (len(boxes), 4)):
        for annotation, box in zip(annotations, boxes, strict=True):
            if not _are_numbers(box, (4,)):
                raise ValueError(
                    f'{source}: the bbox of annotation {annotation["id"]!r} must be '
                    f'[x, y, width, height], four finite numbers, got {box}'
                )
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _are_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``value`` is an array of finite numbers with this shape."""
    try:
        array = np.array(value)
    except (ValueError, TypeError):
        return False
    return array.dtype.kind in 'iuf' and array.shape == shape and bool(np.isfinite(array).all())


def doubt(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """Warning about boxes that exceed their images; None if at most 10 % do.

    Args:
        boxes: (N, 4): x, y, width, height in pixels.
        sizes: (N, 2): width and height of each box's image.
    """
    ends = boxes[:, :2] + boxes[:, 2:]
    outside = _are_outside(boxes[:, :2], ends, sizes)
    if not len(boxes) or outside.mean() <= _MOST_OUTSIDE:
        return None
    text = f'{outside.sum()} of {len(boxes)} boxes exceed their image'
    corners = boxes[:, 2:]
    if (corners > boxes[:, :2]).all() and not _are_outside(boxes[:, :2], corners, sizes).any():
        text += (
            '. Read as [x1, y1, x2, y2] none would: bbox must be [x, y, width, height], as in COCO'
        )
    else:
        text += ': check "width" and "height" in "images" against the pictures'
    return text


def _are_outside(starts: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    before = np.any(starts < -_MARGIN, axis=1)
    after = np.any(ends > sizes + _MARGIN, axis=1)
    return np.logical_or(before, after)
