"""What generators of region proposals share: options, the size they work at, ranked boxes."""

from __future__ import annotations

import cv2
import numpy as np

MODES = ('fast', 'quality')


def shrink(image: np.ndarray, mode: str, max_num: int, max_width: int) -> np.ndarray:
    """Check what a generator is given, and bring the image to the size that it works at.

    Args:
        image (np.ndarray): uint8 (height, width, 3), BGR.
        mode (str): One of ``MODES``.
        max_num (int): Most boxes to return.
        max_width (int): Wider images are shrunk to this width, in pixels.

    Returns:
        np.ndarray: uint8 (height', width', 3).

    Raises:
        ValueError: an unknown mode, a number below 1, or an image of another shape or type.
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
    """Boxes found in the shrunken image as boxes of the image, none twice, scored by rank.

    Args:
        boxes (np.ndarray): float32 (n, 4) as x1, y1, x2, y2 in pixels of ``small``, best first.
        small (np.ndarray): What :func:`shrink` returned.
        image (np.ndarray): What it was given.
        max_num (int): Most boxes to return.

    Returns:
        tuple: boxes, float32 (m, 4) in pixels of ``image``, and scores, float32 (m,), falling
        from 1 by rank.
    """
    ratio = [image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]]
    boxes = boxes * np.array(ratio * 2, np.float32)
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)][:max_num]
    scores = 1 - np.arange(len(boxes), dtype=np.float32) / max(len(boxes), 1)
    return boxes, scores
