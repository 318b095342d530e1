"""Scene-graph metrics. The functions need NumPy only, ``SceneGraphMetric`` needs MMDetection."""

from .matching import NO_HIT, ImageMatch, box_iou, match_image
from .recall import CONVENTIONS, predicate_recall, scene_graph_recall, summarize

__all__ = [
    'CONVENTIONS',
    'NO_HIT',
    'ImageMatch',
    'box_iou',
    'match_image',
    'predicate_recall',
    'scene_graph_recall',
    'summarize',
]
