"""Class-agnostic region proposals by segmenting an image at several scales."""

from __future__ import annotations

import cv2
import numpy as np

from gclip_mm.models.proposal_boxes import ranked, shrink

#: mode -> color spaces (None: BGR, as read), scales from coarse to fine, least pixels of a region.
_SEARCHES = {
    'fast': ((None, cv2.COLOR_BGR2HSV), (400, 200, 100, 50), (100,)),
    'quality': (
        (None, cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2LAB),
        (800, 400, 200, 100, 50),
        (100, 20),
    ),
}


def require_felzenszwalb() -> None:
    """Check that scikit-image is there.

    Raises:
        ImportError: it is not; says what to install.
    """
    try:
        import skimage.segmentation  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'segmentation by Felzenszwalb and Huttenlocher is in scikit-image: '
            '`pip install scikit-image`'
        ) from error


def felzenszwalb_boxes(
    image: np.ndarray, mode: str = 'fast', max_num: int = 2000, max_width: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Propose boxes that may hold an object of any class.

    scikit-image's graph-based segmentation, which is also the first step of selective search, at
    several scales and in several color spaces; every region gives a box. Needs no contrib build of
    OpenCV.

    Args:
        image (np.ndarray): uint8 (height, width, 3), BGR.
        mode (str): 'fast', or 'quality', which takes four times as long and finds more.
        max_num (int): Most boxes to return.
        max_width (int): Shrink wider images to this width first, in pixels.

    Returns:
        tuple: boxes, float32 (n, 4) as x1, y1, x2, y2 in pixels of ``image``, none twice, coarse
        scales first, and scores, float32 (n,), falling from 1 by rank. Deterministic.

    Raises:
        ImportError: scikit-image is missing.
        ValueError: an unknown mode, a number below 1, or an image of another shape or type.

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
