"""Scene-graph detectors."""

from .scene_graph_detector import SceneGraphDetector
from .scene_graph_rcnn import SceneGraphRCNN

__all__ = ['SceneGraphDetector', 'SceneGraphRCNN']
