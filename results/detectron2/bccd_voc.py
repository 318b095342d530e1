"""Registers BCCD (VOC layout) with Detectron2, for ``python -m gclip_mm.detectron2 --import``.

The environment variable ``BCCD`` is the folder with ``Annotations`` and ``JPEGImages``.
"""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_pascal_voc

for split in ('train', 'val', 'test'):
    name = f'bccd_{split}'
    # The year selects the way VOC 2012 computes average precision: the area under the curve.
    register_pascal_voc(name, os.environ['BCCD'], split, 2012, ('RBC', 'WBC', 'Platelets'))
    MetadataCatalog.get(name).evaluator_type = 'pascal_voc'
