"""Class-agnostic region proposals by selective search."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import cv2
import numpy as np

from .proposal_boxes import ranked, shrink


def require_selective_search() -> None:
    """Check that OpenCV has selective search.

    Raises:
        ImportError: OpenCV lacks it; the message says what to install.
    """
    if not hasattr(getattr(cv2, 'ximgproc', None), 'segmentation'):
        raise ImportError(
            'selective search needs the contrib build of OpenCV, which the installed OpenCV '
            f'{cv2.__version__} is not. The builds share one import name, so replace it: `pip '
            'uninstall opencv-python opencv-python-headless`, then `pip install '
            'opencv-contrib-python-headless`. make_proposals.py --method felzenszwalb does not '
            'need it'
        )


def selective_search(
    image: np.ndarray, mode: str = 'fast', max_num: int = 2000, max_width: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Propose boxes that may hold an object of any class.

    Runs OpenCV's implementation, which merges neighbouring regions of an over-segmentation by
    color, texture, size and fill, in several color spaces. Every intermediate region gives a box.

    Args:
        image (np.ndarray): uint8 (height, width, 3), BGR.
        mode (str): 'fast', or 'quality', which takes several times as long and has a higher recall.
        max_num (int): Maximum number of boxes.
        max_width (int): Wider images are first shrunk to this width; the R-CNN paper uses 500 px.

    Returns:
        tuple: Distinct boxes, float32 (n, 4) as x1, y1, x2, y2 in pixels of ``image``, and scores,
        float32 (n,), decreasing from 1 by rank. Deterministic, except on a platform whose C library
        cannot be loaded: there the order varies between runs.

    Raises:
        ImportError: OpenCV without its contrib modules.
        ValueError: An unknown mode, a number below 1, or a wrong image shape or dtype.

    Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013.

    Example:
        >>> boxes, scores = selective_search(cv2.imread('cells.jpg'))
    """
    require_selective_search()
    small = shrink(image, mode, max_num, max_width)
    boxes = _search(small, mode)
    boxes[:, 2:] += boxes[:, :2]
    return ranked(boxes, small, image, max_num)


def _search(image: np.ndarray, mode: str) -> np.ndarray:
    """Boxes, float32 (n, 4) as x, y, width, height, best first."""
    contrib: Any = cv2  # the stubs of OpenCV lack the contrib modules
    search = contrib.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    if mode == 'fast':
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    # OpenCV draws the ranks with the C library's rand(), which cv2.setRNGSeed does not seed.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).srand(0)
    found = np.asarray(search.process(), dtype=np.float32)
    return found.reshape(-1, 4)
