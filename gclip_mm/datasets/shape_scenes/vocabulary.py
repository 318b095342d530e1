"""The words of ShapeScenes: object classes, colors, predicates and scene classes.

The position of a word in its tuple is its label, in the JSON files and in the metainfo alike
(COCO category ids alone are 1-based, as COCO's own are).
"""

from __future__ import annotations

CLASSES = (
    'circle',
    'square',
    'triangle',
    'star',
    'cross',
    'ring',
    'crescent',
    'heart',
    'arrow',
    'hexagon',
)

# Hues (degrees) 60 apart, so that a jitter of +-8 leaves two colors apart under every light.
COLORS = {'red': 0, 'yellow': 60, 'green': 120, 'cyan': 180, 'blue': 240, 'magenta': 300}

PREDICATES = (
    'left of',
    'right of',
    'above',
    'below',
    'in front of',
    'behind',
    'inside',
    'around',
    'larger than',
    'same color as',
)

# What a horizontal flip of the picture turns into what; every other predicate stays as it is.
FLIP_PREDICATE_PAIRS = (('left of', 'right of'),)

SCENES = ('sea', 'meadow', 'wall', 'dunes', 'workshop', 'playroom')

# Which texture a scene is painted with. Two scenes share one, so that the background alone does
# not tell them apart: the objects in them do.
SCENE_TEXTURES = {
    'sea': 'waves',
    'meadow': 'blades',
    'wall': 'bricks',
    'dunes': 'ripples',
    'workshop': 'planks',
    'playroom': 'planks',
}

# The classes a scene prefers; an object is drawn from them with probability TYPICAL_SHARE, else
# from all classes alike.
SCENE_TYPICAL_CLASSES = {
    'sea': ('ring', 'crescent', 'star', 'circle'),
    'meadow': ('heart', 'circle', 'triangle', 'star'),
    'wall': ('square', 'arrow', 'cross', 'circle'),
    'dunes': ('triangle', 'crescent', 'ring', 'hexagon'),
    'workshop': ('hexagon', 'cross', 'arrow', 'square'),
    'playroom': ('heart', 'star', 'ring', 'crescent'),
}
TYPICAL_SHARE = 0.8

# Shapes roomy enough in the middle to have another object drawn inside them.
HOST_CLASSES = ('circle', 'square', 'ring', 'hexagon')

METAINFO = dict(
    classes=CLASSES,
    predicates=PREDICATES,
    flip_predicate_pairs=FLIP_PREDICATE_PAIRS,
    scenes=SCENES,
    palette=[
        (220, 20, 60),
        (0, 90, 200),
        (255, 160, 0),
        (240, 220, 0),
        (0, 150, 90),
        (150, 60, 200),
        (0, 190, 210),
        (255, 105, 180),
        (120, 90, 40),
        (90, 200, 60),
    ],
)
