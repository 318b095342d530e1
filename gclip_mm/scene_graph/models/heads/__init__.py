"""Heads for relations and scene, and their parts."""

from .debias import TDE, Debias, LogitAdjustment
from .egtr_head import EGTRHead
from .frequency_bias import FrequencyBias, LogCountBias
from .relation_head import GraphLogits, GraphObjects, RelationHead
from .scene_head import SceneHead
from .union_features import UnionFeatures

__all__ = [
    'TDE',
    'Debias',
    'EGTRHead',
    'FrequencyBias',
    'GraphLogits',
    'GraphObjects',
    'LogCountBias',
    'LogitAdjustment',
    'RelationHead',
    'SceneHead',
    'UnionFeatures',
]
