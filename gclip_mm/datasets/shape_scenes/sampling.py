"""Draws one ShapeScenes picture with its annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .layout import layout, mask_box, visible_masks
from .relations import annotate, annotated_shares
from .rendering import render
from .vocabulary import CLASSES, PREDICATES, SCENES

SPLITS = ('train', 'val')


@dataclass(frozen=True)
class Sample:
    """A picture and its annotations.

    Attributes:
        image (np.ndarray): uint8, (height, width, 3), BGR.
        scene (int): Scene label.
        objects (list[dict]): COCO annotations without the ids.
        relations (list[tuple]): (index of subject, index of object, predicate label), indices
            into ``objects``.
    """

    image: np.ndarray
    scene: int
    objects: list[dict[str, Any]]
    relations: list[tuple[int, int, int]]


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding of a bool mask: column-major, zeros first."""
    flat = np.asarray(mask, bool).ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    if flat[0]:
        runs.insert(0, 0)
    return {'size': [int(side) for side in mask.shape], 'counts': runs}


def draw_sample(
    seed: int, split: str, index: int, size: tuple[int, int], long_tail: float | None = None
) -> Sample:
    """Draw picture ``index`` of a split.

    The sample depends on the arguments alone and not on the size of the data set. A larger
    data set therefore begins with the pictures of a smaller one with the same seed.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = int(rng.integers(len(SCENES)))
    placed = layout(SCENES[scene], size, rng)
    # Shuffled, so that the order of annotations does not reveal which object is in front.
    order = rng.permutation(len(placed))
    seen = visible_masks(placed)
    objects = []
    for k in order:
        obj, visible = placed[k], seen[k]
        x1, y1, x2, y2 = mask_box(visible)
        fx1, fy1, fx2, fy2 = obj.thing.box
        objects.append(
            {
                'category_id': CLASSES.index(obj.shape) + 1,
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': int(visible.sum()),
                'segmentation': encode_rle(visible),
                'iscrowd': 0,
                'full_bbox': [fx1, fy1, fx2 - fx1, fy2 - fy1],
                'visibility': round(float(visible.sum() / obj.mask.sum()), 4),
                'depth': obj.thing.depth,
                'color': obj.color,
            }
        )
    relations = [
        (subject, other, PREDICATES.index(predicate))
        for subject, other, predicate in annotate(
            [placed[k].thing for k in order], rng, annotated_shares(long_tail)
        )
    ]
    return Sample(render(placed, SCENES[scene], size, rng), scene, objects, relations)
