"""Checks the boxes of COCO annotations: numbers, and in the picture as [x, y, width, height]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Pixels that a box may reach out of its image; some tools count pixels from 1.
_MARGIN = 1
#: A larger share of boxes that reach out is no accident.
_MOST_OUTSIDE = 0.1


def box_array(annotations: Sequence[dict[str, Any]], source: str) -> np.ndarray:
    """The boxes, (N, 4) float64.

    Raises:
        ValueError: A box is not four finite numbers; the message names its annotation.
    """
    # All at once: a loop over the million boxes of Visual Genome takes seconds.
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
    """Whether these are finite numbers, as many as that."""
    try:
        array = np.array(value)
    except (ValueError, TypeError):
        return False
    return array.dtype.kind in 'iuf' and array.shape == shape and bool(np.isfinite(array).all())


def doubt(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """What is odd about boxes that reach out of their images; None if nearly none does.

    Args:
        boxes: (N, 4), x, y, width, height in pixels.
        sizes: (N, 2), width and height of the image of each.
    """
    ends = boxes[:, :2] + boxes[:, 2:]
    outside = _are_outside(boxes[:, :2], ends, sizes)
    if not len(boxes) or outside.mean() <= _MOST_OUTSIDE:
        return None
    text = f'{outside.sum()} of {len(boxes)} boxes reach out of their image'
    corners = boxes[:, 2:]
    if (corners > boxes[:, :2]).all() and not _are_outside(boxes[:, :2], corners, sizes).any():
        text += (
            '. Taken as [x1, y1, x2, y2] none would: bbox must be [x, y, width, height], as in COCO'
        )
    else:
        text += ': are "width" and "height" in "images" those of the pictures?'
    return text


def _are_outside(starts: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return (starts < -_MARGIN).any(axis=1) | (ends > sizes + _MARGIN).any(axis=1)
