"""Panoptic segments: reading their images, and the overlap of masks (NumPy)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike


def read_segments(path: str) -> np.ndarray:
    """Ids of a COCO panoptic PNG: red + 256 green + 65536 blue.

    Returns:
        (H, W) int64.

    Raises:
        FileNotFoundError: There is no picture at ``path``.
    """
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f'there is no panoptic picture {path}')
    return image.astype(np.int64) @ np.array([65536, 256, 1])  # OpenCV's order is BGR


def masks_of(segments: np.ndarray, ids: ArrayLike) -> np.ndarray:
    """(N, H, W) bool, the mask of each of N segment ids in ``segments`` (H, W)."""
    return segments[None] == np.asarray(ids, np.int64).reshape(-1, 1, 1)


def mask_iou(masks1: np.ndarray, masks2: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of masks from two sets.

    Args:
        masks1: (N, H, W) bool.
        masks2: (G, H, W) bool.

    Returns:
        (N, G) float64, 0 where both masks are empty.

    Raises:
        ValueError: The masks are of different pictures.
    """
    if masks1.shape[1:] != masks2.shape[1:]:
        raise ValueError(f'masks of {masks1.shape[1:]} and {masks2.shape[1:]} pixels')
    # Counts of pixels are below 2**24, so float32 holds them exactly, and its product is fast.
    a, b = (m.reshape(len(m), -1).astype(np.float32) for m in (masks1, masks2))
    inter = (a @ b.T).astype(np.float64)
    union = a.sum(1, dtype=np.float64)[:, None] + b.sum(1, dtype=np.float64)[None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def merge_masks(
    masks: np.ndarray, scores: np.ndarray, iou_thr: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """One mask for each object: duplicates join the best of them, and no pixel is used twice.

    The best mask comes first. A mask that overlaps a better one by ``iou_thr`` joins it. Others
    keep the pixels that better ones have not taken; without any left, they are dropped. This is
    how the single-mask protocol of Lorenz et al. (arXiv 2407.09216) merges the masks of a model.

    Args:
        masks: (N, H, W) bool.
        scores: (N,).
        iou_thr: IoU of the whole masks, inclusive.

    Returns:
        Disjoint masks (K, H, W), and the index of the mask that each of the N became, (N,) int64,
        -1 for a dropped one.
    """
    became = np.full(len(masks), -1, np.int64)
    iou = mask_iou(masks, masks)
    taken = np.zeros(masks.shape[1:], bool)
    kept: list[np.ndarray] = []
    for best in np.argsort(-scores, kind='stable').tolist():
        if became[best] >= 0:
            continue
        rest = masks[best] & ~taken
        if not rest.any():
            continue
        duplicates = (iou[best] >= iou_thr) & (became < 0) & _later(scores, best)
        became[duplicates] = became[best] = len(kept)
        taken |= rest
        kept.append(rest)
    return (np.stack(kept) if kept else masks[:0]), became


def _later(scores: np.ndarray, best: int) -> np.ndarray:
    """(N,) bool: masks that come after ``best`` in the order of the scores."""
    ties_after = (scores == scores[best]) & (np.arange(len(scores)) > best)
    return (scores < scores[best]) | ties_after


def scale_masks(masks: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Masks (N, H, W) bool scaled to ``size`` (height, width), by the nearest pixel."""
    height, width = size
    if masks.shape[1:] == (height, width) or not len(masks):
        return masks if masks.shape[1:] == (height, width) else np.zeros((0, height, width), bool)
    return np.stack(
        [
            cv2.resize(m.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
            for m in masks
        ]
    )
