"""Scene accuracy (pure NumPy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def scene_rank(scores: np.ndarray, label: int) -> int:
    """0-based rank of the true scene; ties go to the lower label.

    Args:
        scores: (S,) score of each scene class.
        label: Label of the true scene.

    Raises:
        ValueError: The label is not in [0, S), or a score is NaN.
    """
    scores = np.asarray(scores, np.float64).ravel()
    if not 0 <= label < len(scores):
        raise ValueError(f'scene label {label} is not in [0, {len(scores)})')
    if np.isnan(scores).any():
        raise ValueError('scene scores hold NaN')
    ahead = scores > scores[label]
    ahead[:label] |= scores[:label] == scores[label]
    return int(ahead.sum())


def scene_accuracy(ranks: Sequence[int], topk: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of the images whose true scene is among the k best.

    Args:
        ranks: :func:`scene_rank` of each image with a scene label.
        topk: Values of k.

    Returns:
        ``scene_top1`` and so on, in [0, 1]; NaN without images.
    """
    array = np.asarray(ranks, np.int64)
    return {
        f'scene_top{k}': float((array < k).mean()) if len(array) else float('nan') for k in topk
    }
