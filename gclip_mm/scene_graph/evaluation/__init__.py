"""Scene-graph metrics. The functions need only NumPy; ``SceneGraphMetric`` needs MMDetection."""

from ...compat import is_usable
from ..boxes import box_iou
from .matching import NO_HIT, ImageMatch, match_image
from .recall import CONVENTIONS, predicate_recall, scene_graph_recall, summarize
from .scene import scene_accuracy, scene_rank

__all__ = [
    'CONVENTIONS',
    'NO_HIT',
    'ImageMatch',
    'box_iou',
    'match_image',
    'predicate_recall',
    'scene_accuracy',
    'scene_graph_recall',
    'scene_rank',
    'summarize',
]

if is_usable('mmdet.models'):
    from .metric import SceneGraphMetric

    __all__ += ['SceneGraphMetric']
