"""Class-agnostic region proposals by selective search."""

from __future__ import annotations

import contextlib
import ctypes

import cv2
import numpy as np

from gclip_mm.models.proposal_boxes import ranked, shrink


def require_selective_search() -> None:
    """Check that OpenCV has selective search.

    Raises:
        ImportError: it has not; says what to install.
    """
    if not hasattr(getattr(cv2, 'ximgproc', None), 'segmentation'):
        raise ImportError(
            f'selective search is in the contrib build of OpenCV, and OpenCV {cv2.__version__} '
            'here is not one. The builds share one import name, so replace it: `pip uninstall '
            'opencv-python opencv-python-headless`, then `pip install '
            'opencv-contrib-python-headless`. make_proposals.py --method felzenszwalb does without'
        )


def selective_search(
    image: np.ndarray, mode: str = 'fast', max_num: int = 2000, max_width: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Propose boxes that may hold an object of any class.

    OpenCV's implementation: an over-segmentation, whose neighbours are merged by color, texture,
    size and fill, in several color spaces. Every region that ever existed gives a box.

    Args:
        image (np.ndarray): uint8 (height, width, 3), BGR.
        mode (str): 'fast', or 'quality', which takes several times as long and finds more.
        max_num (int): Most boxes to return.
        max_width (int): Shrink wider images to this width first; R-CNN's paper uses 500 pixels.

    Returns:
        tuple: boxes, float32 (n, 4) as x1, y1, x2, y2 in pixels of ``image``, none twice, and
        scores, float32 (n,), falling from 1 by rank. Deterministic, except that on a platform whose
        C library cannot be reached the order differs from run to run.

    Raises:
        ImportError: OpenCV without its contrib modules.
        ValueError: an unknown mode, a number below 1, or an image of another shape or type.

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
    """Boxes as float32 (n, 4): x, y, width, height, best first."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    if mode == 'fast':
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    # The ranks are drawn with the C library's rand(), which OpenCV's own seed does not reach.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).srand(0)
    found = np.asarray(search.process(), dtype=np.float32)
    return found.reshape(-1, 4)
