"""Hooks for scene-graph training."""

from .frequency_bias_hook import FrequencyBiasHook
from .scene_graph_check_hook import SceneGraphCheckHook

__all__ = ['FrequencyBiasHook', 'SceneGraphCheckHook']
