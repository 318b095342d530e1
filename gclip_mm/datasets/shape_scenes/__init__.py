"""ShapeScenes: drawn pictures of colored shapes for a first run, with relations and scenes.

Pictures of 2 to 6 shapes of ten classes on textured backgrounds, with occlusion, shadows, uneven
light, blur and noise. Needs NumPy and OpenCV only (and filelock and tqdm to write the files).
The same parameters give the same pictures and the same JSON, byte for byte, under the same
release of OpenCV.

Make it from the command line (``--help`` lists the options)::

    python -m gclip_mm.datasets.shape_scenes --out data/shape_scenes --seed 0

or let ``ShapeScenesDataset`` make it when a config first asks for it.

Files
=====
::

    data/shape_scenes/
      shape_scenes.json      parameters and checksums; a folder that has it is whole
      annotations/train.json
      annotations/val.json
      train/000000.jpg ...   the file's number is the image's id
      val/000000.jpg ...

JSON
====
COCO's instance format with more keys. All pixel values are in the image's own pixels, boxes are
``[x, y, width, height]``, and ids are integers.

``images``: list of
    ``id``, ``file_name`` (relative to the split's folder), ``width``, ``height``, and ``scene``,
    the label of the image's scene class (an ``id`` of ``scenes``).
``annotations``: list of
    ``id`` (unique in the file, from 0), ``image_id``, ``category_id``, ``bbox`` (tight around the
    visible part), ``area`` (visible pixels), ``segmentation`` (visible part, uncompressed COCO
    RLE: ``{'size': [height, width], 'counts': [...]}``; shapes have holes, which polygons cannot
    say), ``iscrowd`` (0), and four keys that readers may ignore: ``full_bbox`` (tight around the
    whole shape, hidden part included), ``visibility`` (visible share of the shape, 0 to 1),
    ``depth`` (draw order within the image, 0 is the backmost), ``color`` (name).
    An image's annotations are in no particular order.
``categories``: list of
    ``id`` (1-based), ``name``.
``predicates``: list of
    ``id`` (0-based, the label), ``name``.
``scenes``: list of
    ``id`` (0-based, the label), ``name``.
``relations``: list of
    ``image_id``, ``subject_id`` and ``object_id`` (annotation ids, both of that image),
    ``predicate_id``. Read "subject predicate object": ``left of`` means that the subject is to
    the left. A pair is annotated in one direction at most, with one predicate, and true
    relations are left out at random, the rarer predicates more often; an image may have none.
    What each predicate means is defined in ``relations.predicate_between``.

The same names are in ``ShapeScenesDataset.METAINFO``: ``classes``, ``predicates``, ``scenes``, and
``flip_predicate_pairs``, the pairs of predicates that a horizontal flip exchanges.
"""

from .generator import ShapeScenesParams, generate
from .relations import predicate_between
from .vocabulary import CLASSES, FLIP_PREDICATE_PAIRS, METAINFO, PREDICATES, SCENES

__all__ = [
    'CLASSES',
    'FLIP_PREDICATE_PAIRS',
    'METAINFO',
    'PREDICATES',
    'SCENES',
    'ShapeScenesParams',
    'generate',
    'predicate_between',
]
