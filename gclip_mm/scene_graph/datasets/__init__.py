"""Scene-graph data sets, registered with MMDetection on import if it is installed.

Reading, checking and writing the files does not need MMDetection.
"""

from importlib.util import find_spec

from .relation_index import RelationIndex
from .statistics import RelationStatistics, relation_statistics, zero_shot_triplets
from .writer import SceneGraphWriter

__all__ = [
    'RelationIndex',
    'RelationStatistics',
    'SceneGraphWriter',
    'relation_statistics',
    'zero_shot_triplets',
]

if find_spec('mmdet') is not None:
    from .predicate_resampling import PredicateResampling
    from .scene_graph_dataset import SceneGraphDataset
    from .shape_scenes_graph_dataset import ShapeScenesGraphDataset

    __all__ += ['PredicateResampling', 'SceneGraphDataset', 'ShapeScenesGraphDataset']
