"""Names in ShapeScenes: object classes, colors, predicates and scene classes.

The position of a name in its tuple is its label, both in the JSON files and in the metainfo. Only
COCO category ids are 1-based, as in COCO.
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

# Hues in degrees, 60 apart: colors stay distinguishable under a jitter of +-8 and any light.
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

# Predicates that a horizontal flip swaps; all others are unchanged.
FLIP_PREDICATE_PAIRS = (('left of', 'right of'),)

SCENES = ('sea', 'meadow', 'wall', 'dunes', 'workshop', 'playroom')

# Background texture of each scene. Two scenes share a texture, so that only the objects distinguish
# them.
SCENE_TEXTURES = {
    'sea': 'waves',
    'meadow': 'blades',
    'wall': 'bricks',
    'dunes': 'ripples',
    'workshop': 'planks',
    'playroom': 'planks',
}

# Classes that a scene prefers. An object is drawn from them with probability TYPICAL_SHARE, else
# uniformly from all classes.
SCENE_TYPICAL_CLASSES = {
    'sea': ('ring', 'crescent', 'star', 'circle'),
    'meadow': ('heart', 'circle', 'triangle', 'star'),
    'wall': ('square', 'arrow', 'cross', 'circle'),
    'dunes': ('triangle', 'crescent', 'ring', 'hexagon'),
    'workshop': ('hexagon', 'cross', 'arrow', 'square'),
    'playroom': ('heart', 'star', 'ring', 'crescent'),
}
TYPICAL_SHARE = 0.8

# Shapes with enough space in the middle for another object.
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
