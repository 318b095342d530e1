"""Visualization of scene graphs. Importing this registers the visualizer with MMDetection."""

from .graph import Edge, Graph, Node, build_graph
from .scene_graph_visualizer import SceneGraphVisualizer

__all__ = ['Edge', 'Graph', 'Node', 'SceneGraphVisualizer', 'build_graph']
