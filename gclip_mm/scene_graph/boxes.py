"""Box arithmetic in NumPy, shared by data sets, metrics and pictures."""

from __future__ import annotations

import numpy as np

#: Values of ``plus_one``.
PLUS_ONE = (False, True, 'intersection')


def box_iou(boxes1: np.ndarray, boxes2: np.ndarray, plus_one: bool | str = False) -> np.ndarray:
    """Intersection over union of every pair of boxes from two sets.

    Args:
        boxes1: (N, 4) xyxy.
        boxes2: (G, 4) xyxy.
        plus_one: Compute ``width = x2 - x1 + 1``, as code derived from Fast R-CNN does.
            ``'intersection'``: only for the intersection, as SGG-Benchmark and part of EGTR do;
            the result can exceed 1.

    Returns:
        (N, G) float64, 0 where the union has no area.
    """
    offset = 1.0 if plus_one else 0.0
    grown = 1.0 if plus_one is True else 0.0
    area1 = np.prod(np.maximum(boxes1[:, 2:] - boxes1[:, :2] + grown, 0), axis=1)
    area2 = np.prod(np.maximum(boxes2[:, 2:] - boxes2[:, :2] + grown, 0), axis=1)
    # One coordinate at a time, because an (N, G, 2) temporary takes twice as long.
    inter = np.minimum(boxes1[:, None, 2], boxes2[None, :, 2])
    inter -= np.maximum(boxes1[:, None, 0], boxes2[None, :, 0])
    height = np.minimum(boxes1[:, None, 3], boxes2[None, :, 3])
    height -= np.maximum(boxes1[:, None, 1], boxes2[None, :, 1])
    inter += offset
    height += offset
    np.maximum(inter, 0, out=inter)
    inter *= np.maximum(height, 0, out=height)
    union = area1[:, None] + area2[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def pair_unions(boxes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Smallest box around both boxes of each pair.

    Args:
        boxes: (N, 4) xyxy.
        pairs: (M, 2 or more) int, the boxes in the first two columns.

    Returns:
        (M, 4) xyxy.
    """
    first, second = boxes[pairs[:, 0]], boxes[pairs[:, 1]]
    low, high = np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])
    return np.hstack((low, high))
