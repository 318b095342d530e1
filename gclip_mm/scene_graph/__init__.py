"""Scene-graph generation for MMDetection: data, models, metrics and pictures.

Importing this package registers everything below it with MMDetection's registries when
MMDetection is installed. Without it, ``gclip_mm.scene_graph.evaluation`` still gives the metric as
a NumPy function.
"""

from importlib.util import find_spec

if find_spec('mmdet') is not None:
    from . import datasets, engine, evaluation, models, transforms, visualization  # noqa: F401
