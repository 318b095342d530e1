"""Scene-graph generation for MMDetection: data, models, metrics and visualization.

Importing this package registers its sub-packages with MMDetection's registries if MMDetection is
installed. ``gclip_mm.scene_graph.evaluation`` works without MMDetection: its metric functions need
NumPy only.

Layers, each of which imports only from those before it: ``boxes``, ``transforms``, ``datasets``,
``evaluation`` and ``models`` (independent of each other), ``engine`` and ``visualization``
(likewise), ``inferencer``.
"""

from importlib.util import find_spec

if find_spec('mmdet') is not None:
    from . import datasets, engine, evaluation, models, transforms, visualization  # noqa: F401
