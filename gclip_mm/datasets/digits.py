"""Handwritten digits that scikit-learn ships: real data without a download."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SPLITS = ('train', 'test')
#: The first 1500 of the 1797 digits are the training split, the other 297 the test split.
NUM_TRAIN = 1500
SIZE = 32


def load_digits(split: str) -> tuple[Tensor, Tensor]:
    """Load digits of 8x8 pixels, resized to 32x32.

    Args:
        split: 'train' (1500 digits) or 'test' (297).

    Returns:
        Images, float32 (N, 1, 32, 32) in [0, 1], and labels, int64 (N,).

    Raises:
        ValueError: ``split`` is neither 'train' nor 'test'.
        ImportError: scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('scikit-learn ships the digits: pip install scikit-learn') from error
    digits = datasets.load_digits()
    part = slice(0, NUM_TRAIN) if split == 'train' else slice(NUM_TRAIN, None)
    images = torch.from_numpy(digits.images[part]).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=(SIZE, SIZE), mode='bilinear', align_corners=False)
    return images, torch.from_numpy(digits.target[part]).long()
