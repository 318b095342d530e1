"""RoI heads and extractors of R-CNN and Fast R-CNN."""

from .image_region_extractor import ImageRegionExtractor
from .region_roi_head import RegionRoIHead

__all__ = ['ImageRegionExtractor', 'RegionRoIHead']
