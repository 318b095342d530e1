"""Data sets for the first runs.

Importing this package registers them with MMDetection, if MMDetection is installed.
The generator in :mod:`gclip_mm.datasets.shape_scenes` needs no MMDetection.
"""

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .bccd_dataset import BCCDDataset
    from .digits_dataset import DigitsDataset
    from .shape_scenes_dataset import ShapeScenesDataset

    __all__ += ['BCCDDataset', 'DigitsDataset', 'ShapeScenesDataset']
