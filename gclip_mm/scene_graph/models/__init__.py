"""Scene-graph models based on MMDetection's two-stage detectors.

Importing this package registers contexts, heads and detectors with MMDetection's ``MODELS`` and
the pair sampler with its ``TASK_UTILS``.
"""

from .contexts import (
    BaseContext,
    CRNNContext,
    IdentityContext,
    IMPContext,
    RNNContext,
    TransformerContext,
)
from .detectors import SceneGraphRCNN
from .heads import TDE, FrequencyBias, LogitAdjustment, RelationHead, SceneHead, UnionFeatures
from .losses import CountWeightedCrossEntropy
from .protocol import SceneGraphProtocol
from .task_modules import PairSampler

__all__ = [
    'TDE',
    'BaseContext',
    'CRNNContext',
    'CountWeightedCrossEntropy',
    'FrequencyBias',
    'IMPContext',
    'IdentityContext',
    'LogitAdjustment',
    'PairSampler',
    'RNNContext',
    'RelationHead',
    'SceneGraphProtocol',
    'SceneGraphRCNN',
    'SceneHead',
    'TransformerContext',
    'UnionFeatures',
]
