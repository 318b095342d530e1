from .image_region_extractor import ImageRegionExtractor
from .region_roi_head import RegionRoIHead

__all__ = ['ImageRegionExtractor', 'RegionRoIHead']
