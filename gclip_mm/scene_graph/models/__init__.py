"""Scene-graph models based on the detectors of MMDetection.

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
from .detectors import SceneGraphDetector, SceneGraphRCNN
from .heads import (
    TDE,
    EGTRHead,
    FrequencyBias,
    LogCountBias,
    LogitAdjustment,
    RelationHead,
    SceneHead,
    UnionFeatures,
)
from .losses import CountWeightedCrossEntropy
from .protocol import SceneGraphProtocol
from .task_modules import PairSampler

__all__ = [
    'TDE',
    'BaseContext',
    'CRNNContext',
    'CountWeightedCrossEntropy',
    'EGTRHead',
    'FrequencyBias',
    'IMPContext',
    'IdentityContext',
    'LogCountBias',
    'LogitAdjustment',
    'PairSampler',
    'RNNContext',
    'RelationHead',
    'SceneGraphDetector',
    'SceneGraphProtocol',
    'SceneGraphRCNN',
    'SceneHead',
    'TransformerContext',
    'UnionFeatures',
]
