"""What the engine does to torch's optimizer: hooks around ``step``, and attributes for one step."""

from .bystander import clipped_around
from .inspection import check_own_clipping, check_trainer, clippable
from .seam import StepSeam, is_nested
from .side import OptimizerSide

__all__ = [
    'OptimizerSide',
    'StepSeam',
    'check_own_clipping',
    'check_trainer',
    'clippable',
    'clipped_around',
    'is_nested',
]
