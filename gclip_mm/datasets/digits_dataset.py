"""Handwritten digits as an MMEngine data set."""

from __future__ import annotations

from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset

from .digits import load_digits


@DATASETS.register_module()
class DigitsDataset(Dataset):
    """Handwritten digits of scikit-learn.

    A sample is ``dict(inputs=..., labels=...)``: float32 (1, 32, 32) in [0, 1] and int64 ().

    Args:
        split (str): 'train' or 'test'.

    Raises:
        ValueError: ``split`` is neither 'train' nor 'test'.
        ImportError: scikit-learn is not installed.

    Example: ``configs/digits/small-cnn_value_digits.py``.
    """

    metainfo = dict(classes=tuple('0123456789'))

    def __init__(self, split: str = 'train') -> None:
        self.images, self.labels = load_digits(split)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=self.images[index], labels=self.labels[index])
