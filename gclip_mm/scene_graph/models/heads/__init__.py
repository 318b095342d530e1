"""Heads for relations and scene, and their parts."""

from .debias import TDE, Debias, LogitAdjustment
from .frequency_bias import FrequencyBias
from .relation_head import GraphLogits, GraphObjects, RelationHead
from .scene_head import SceneHead
from .union_features import UnionFeatures

__all__ = [
    'TDE',
    'Debias',
    'FrequencyBias',
    'GraphLogits',
    'GraphObjects',
    'LogitAdjustment',
    'RelationHead',
    'SceneHead',
    'UnionFeatures',
]
