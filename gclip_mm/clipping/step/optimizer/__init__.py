"""What the engine does to torch's optimizer: hooks around ``step``, and attributes for one step."""

from .inspection import check_own_clipping, check_trainer, clippable
from .once import check_not_clipped
from .seam import StepSeam, is_nested
from .side import OptimizerSide

__all__ = [
    'OptimizerSide',
    'StepSeam',
    'check_not_clipped',
    'check_own_clipping',
    'check_trainer',
    'clippable',
    'is_nested',
]
