"""What scene-graph training needs of the runner."""

from .frequency_bias_hook import FrequencyBiasHook

__all__ = ['FrequencyBiasHook']
