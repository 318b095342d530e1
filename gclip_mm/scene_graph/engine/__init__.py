"""What scene-graph training needs of the runner."""

from .frequency_bias_hook import FrequencyBiasHook
from .scene_graph_check_hook import SceneGraphCheckHook

__all__ = ['FrequencyBiasHook', 'SceneGraphCheckHook']
