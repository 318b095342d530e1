"""Scene-graph data sets. Importing this registers them with MMDetection."""

from .relation_index import RelationIndex
from .scene_graph_dataset import SceneGraphDataset
from .shape_scenes_graph_dataset import ShapeScenesGraphDataset
from .statistics import RelationStatistics, relation_statistics, zero_shot_triplets

__all__ = [
    'RelationIndex',
    'RelationStatistics',
    'SceneGraphDataset',
    'ShapeScenesGraphDataset',
    'relation_statistics',
    'zero_shot_triplets',
]
