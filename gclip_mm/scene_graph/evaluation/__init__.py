"""Scene-graph metrics. The functions need only NumPy; the metric classes need MMDetection."""

from ...compat import is_usable
from ..boxes import box_iou
from .matching import NO_HIT, ImageMatch, match_image
from .open_images import open_images_vrd
from .options import CONVENTIONS, RecallOptions
from .predicate_groups import predicate_groups
from .recall import predicate_recall, scene_graph_recall, summarize
from .scene import scene_accuracy, scene_rank
from .triplet_file import load_triplets

__all__ = [
    'CONVENTIONS',
    'NO_HIT',
    'ImageMatch',
    'RecallOptions',
    'box_iou',
    'load_triplets',
    'match_image',
    'open_images_vrd',
    'predicate_groups',
    'predicate_recall',
    'scene_accuracy',
    'scene_graph_recall',
    'scene_rank',
    'summarize',
]

if is_usable('mmdet.models'):
    from .metric import SceneGraphMetric
    from .open_images_metric import OpenImagesVRDMetric

    __all__ += ['OpenImagesVRDMetric', 'SceneGraphMetric']
