"""Scene accuracy (pure NumPy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def scene_rank(scores: np.ndarray, label: int) -> int:
    """0-based rank of the true scene; among equal scores the lower label comes first.

    Args:
        scores: (S,) score of each scene class.
        label: The true one.

    Raises:
        ValueError: If the label is none of the S classes, or a score is NaN.
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
    """Share of the images whose true scene is among the first k.

    Args:
        ranks: :func:`scene_rank` of each image that has a scene label.
        topk: The k.

    Returns:
        ``scene_top1`` and so on; NaN without images.
    """
    ranks = np.asarray(ranks, np.int64)
    return {
        f'scene_top{k}': float((ranks < k).mean()) if len(ranks) else float('nan') for k in topk
    }
