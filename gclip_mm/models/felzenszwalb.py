"""Class-agnostic region proposals by segmenting an image at several scales."""

from __future__ import annotations

import cv2
import numpy as np

from .proposal_boxes import ranked, shrink

#: mode -> color spaces (None: BGR), scales from coarse to fine, minimum region sizes in pixels.
_SEARCHES = {
    'fast': ((None, cv2.COLOR_BGR2HSV), (400, 200, 100, 50), (100,)),
    'quality': (
        (None, cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2LAB),
        (800, 400, 200, 100, 50),
        (100, 20),
    ),
}


def require_felzenszwalb() -> None:
    """Check that scikit-image is installed.

    Raises:
        ImportError: scikit-image is missing; the message says how to install it.
    """
    try:
        import skimage.segmentation  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'segmentation by Felzenszwalb and Huttenlocher needs scikit-image: '
            '`pip install scikit-image`'
        ) from error


def felzenszwalb_boxes(
    image: np.ndarray, mode: str = 'fast', max_num: int = 2000, max_width: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Propose boxes that may hold an object of any class.

    Runs scikit-image's graph-based segmentation, which is also the first step of selective search,
    at several scales and in several color spaces. Every region gives a box. The contrib build of
    OpenCV is not needed.

    Args:
        image (np.ndarray): uint8 (height, width, 3), BGR.
        mode (str): 'fast', or 'quality', which takes four times as long and has a higher recall.
        max_num (int): Maximum number of boxes.
        max_width (int): Wider images are first shrunk to this width, in pixels.

    Returns:
        tuple: Distinct boxes, float32 (n, 4) as x1, y1, x2, y2 in pixels of ``image``, coarse
        scales first; and scores, float32 (n,), decreasing from 1 by rank. Deterministic.

    Raises:
        ImportError: scikit-image is missing.
        ValueError: An unknown mode, a number below 1, or a wrong image shape or dtype.

    Source: Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004.

    Example:
        >>> boxes, scores = felzenszwalb_boxes(cv2.imread('cells.jpg'))
    """
    require_felzenszwalb()
    from skimage.measure import regionprops
    from skimage.segmentation import felzenszwalb

    small = shrink(image, mode, max_num, max_width)
    spaces, scales, min_sizes = _SEARCHES[mode]
    colored = [small if space is None else cv2.cvtColor(small, space) for space in spaces]
    boxes = []
    for scale in scales:
        for min_size in min_sizes:
            for pixels in colored:
                labels = felzenszwalb(
                    pixels, scale=scale, sigma=0.8, min_size=min_size, channel_axis=-1
                )
                for region in regionprops(labels + 1):
                    y1, x1, y2, x2 = region.bbox
                    boxes.append((x1, y1, x2, y2))
    return ranked(np.array(boxes, np.float32), small, image, max_num)
