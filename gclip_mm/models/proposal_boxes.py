"""Shared parts of the region proposal generators: option checks, resizing, ranking."""

from __future__ import annotations

import cv2
import numpy as np

MODES = ('fast', 'quality')


def shrink(image: np.ndarray, mode: str, max_num: int, max_width: int) -> np.ndarray:
    """Check the arguments of a generator and resize the image to its working size.

    Args:
        image (np.ndarray): uint8 (height, width, 3), BGR.
        mode (str): One of ``MODES``.
        max_num (int): Maximum number of boxes.
        max_width (int): Wider images are shrunk to this width, in pixels.

    Returns:
        np.ndarray: uint8 (height', width', 3).

    Raises:
        ValueError: An unknown mode, a number below 1, or a wrong image shape or dtype.
    """
    if mode not in MODES:
        raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
    for key, value in (('max_num', max_num), ('max_width', max_width)):
        if value < 1:
            raise ValueError(f'{key} must be at least 1, got {value}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'image must be uint8 (height, width, 3), got {image.dtype} {image.shape}')
    height, width = image.shape[:2]
    if width <= max_width:
        return image
    size = (max_width, max(1, round(height * max_width / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def ranked(
    boxes: np.ndarray, small: np.ndarray, image: np.ndarray, max_num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale boxes of the shrunken image to the original, remove duplicates and score by rank.

    Args:
        boxes (np.ndarray): float32 (n, 4) as x1, y1, x2, y2 in pixels of ``small``, best first.
        small (np.ndarray): Output of :func:`shrink`.
        image (np.ndarray): Input of :func:`shrink`.
        max_num (int): Maximum number of boxes.

    Returns:
        tuple: Boxes, float32 (m, 4) in pixels of ``image``, and scores, float32 (m,), decreasing
        from 1 by rank.
    """
    ratio = [image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]]
    boxes = boxes * np.array(ratio * 2, np.float32)
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)][:max_num]
    scores = 1 - np.arange(len(boxes), dtype=np.float32) / max(len(boxes), 1)
    return boxes, scores
