"""A small classifier, and its accuracy as a metric."""

from .accuracy import Accuracy
from .small_cnn import SmallCNN

__all__ = ['Accuracy', 'SmallCNN']
