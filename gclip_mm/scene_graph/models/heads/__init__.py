"""Heads for relations and scene, and their parts."""

from .frequency_bias import FrequencyBias
from .relation_head import GraphLogits, GraphObjects, RelationHead
from .scene_head import SceneHead
from .union_features import UnionFeatures

__all__ = [
    'FrequencyBias',
    'GraphLogits',
    'GraphObjects',
    'RelationHead',
    'SceneHead',
    'UnionFeatures',
]
