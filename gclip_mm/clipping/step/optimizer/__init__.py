"""What the engine does to torch's optimizer: hooks around ``step``, and attributes for one step."""

from .seam import StepSeam, is_nested
from .side import OptimizerSide

__all__ = ['OptimizerSide', 'StepSeam', 'is_nested']
