"""Models that MMDetection lacks. Importing this registers them with MMEngine and MMDetection."""

from .backbones import VGG, SlimSSDVGG
from .classifiers import Accuracy, SmallCNN
from .detectors import RCNN
from .roi_heads import ImageRegionExtractor, RegionRoIHead

__all__ = [
    'RCNN',
    'VGG',
    'Accuracy',
    'ImageRegionExtractor',
    'RegionRoIHead',
    'SlimSSDVGG',
    'SmallCNN',
]
