"""ShapeScenes: generated pictures of colored shapes, with relations and scene classes.

Each picture has 2 to 6 shapes of ten classes on a textured background, with occlusion, shadows,
uneven light, blur and noise. The generator needs NumPy and OpenCV, and filelock and tqdm to write
the files. Equal parameters give byte-identical pictures and JSON under the same OpenCV release.

Generate the data set from the command line (``--help`` lists the options)::

    python -m gclip_mm.datasets.shape_scenes --out data/shape_scenes --seed 0

or let ``ShapeScenesDataset`` generate it when a config first loads it.

Files
=====
::

    data/shape_scenes/
      shape_scenes.json      parameters and checksums; marks a complete folder
      annotations/train.json
      annotations/val.json
      train/000000.jpg ...   the number in the file name is the image id
      val/000000.jpg ...

JSON
====
COCO's instance format with additional keys. Coordinates are in pixels of the image, boxes are
``[x, y, width, height]``, and ids are integers.

``images``: list of
    ``id``, ``file_name`` (relative to the split's folder), ``width``, ``height``, and ``scene``,
    the label of the image's scene class (an ``id`` of ``scenes``).
``annotations``: list of
    ``id`` (unique in the file, from 0), ``image_id``, ``category_id``, ``bbox`` (tight around the
    visible part), ``area`` (visible pixels), ``segmentation`` (visible part, uncompressed COCO
    RLE: ``{'size': [height, width], 'counts': [...]}``; polygons cannot represent the holes of
    shapes), ``iscrowd`` (0), and four keys that readers may ignore: ``full_bbox`` (tight around the
    whole shape, hidden part included), ``visibility`` (visible share of the shape, 0 to 1),
    ``depth`` (draw order within the image, 0 is at the back), ``color`` (name).
    The annotations of an image are in no particular order.
``categories``: list of
    ``id`` (1-based), ``name``.
``predicates``: list of
    ``id`` (0-based, the label), ``name``.
``scenes``: list of
    ``id`` (0-based, the label), ``name``.
``relations``: list of
    ``image_id``, ``subject_id`` and ``object_id`` (annotation ids, both of that image),
    ``predicate_id``. Read "subject predicate object": ``left of`` means that the subject is to
    the left. A pair is annotated in at most one direction, with one predicate. True relations
    are omitted at random, rarer predicates more often; an image may have no relation. With
    ``long_tail`` the predicates are long-tailed, as those of real data are; pictures, boxes and
    scenes are the same.
    ``relations.predicate_between`` defines each predicate.

``ShapeScenesDataset.METAINFO`` has the same names: ``classes``, ``predicates``, ``scenes``, and
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
