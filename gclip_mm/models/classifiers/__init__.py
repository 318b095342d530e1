from .accuracy import Accuracy
from .small_cnn import SmallCNN

__all__ = ['Accuracy', 'SmallCNN']
