"""Checks and indexes what a scene-graph JSON file adds to COCO's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .boxes import box_array, doubt

_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
    'predicates': ('id', 'name'),
    'scenes': ('id', 'name'),
    'relations': ('image_id', 'subject_id', 'object_id', 'predicate_id'),
}


class RelationIndex:
    """Relations and scene labels of a scene-graph JSON file, by image.

    Args:
        content: The parsed JSON file.
        source: What error messages call it.
        metainfo: ``classes``, ``predicates`` and ``scenes``, names each; those that are missing
            are read from the file, in its order. A subset selects: relations with other
            predicates are left out.

    Raises:
        ValueError: If a key is missing, an id is unknown or not unique, a box is not four finite
            numbers, a relation joins boxes of different images or a box with itself, or
            ``metainfo`` names something that the file does not have, or classes in another order
            than the file.

    Attributes:
        doubt: What is odd about the boxes, a sentence, or None.
    """

    def __init__(self, content: Mapping[str, Any], source: str, metainfo: Mapping[str, Any]):
        self.source = source
        for key, required in _KEYS.items():
            entries = content.get(key, []) if key == 'scenes' else content.get(key)
            if not isinstance(entries, list):
                raise ValueError(
                    f'{source} has no list {key!r}; scene graphs are COCO JSON with "predicates" '
                    'and "relations", and "scenes" where the images have a scene'
                )
            for number, entry in enumerate(entries):
                missing = [k for k in required if k not in entry]
                if missing:
                    raise ValueError(
                        f'{source}: {key}[{number}] has no {missing[0]!r}; it has {sorted(entry)}'
                    )
        self.classes, class_label = self._names(content, 'categories', metainfo.get('classes'))
        in_file = [e['name'] for e in content['categories'] if e['name'] in self.classes]
        if in_file != list(self.classes):
            # MMDetection, CocoMetric included, numbers classes as the file does, whatever the
            # order of their names in the metainfo: labels and names would not fit.
            raise ValueError(
                f'{source} has the classes in the order {in_file}; the metainfo must name them in '
                f'this order, not {list(self.classes)}'
            )
        self.predicates, predicate_label = self._names(
            content, 'predicates', metainfo.get('predicates')
        )
        self.scenes, scene_label = self._names(content, 'scenes', metainfo.get('scenes'))

        self.scene_of_image: dict[Any, int | None] = {}
        size_of_image: dict[Any, tuple[float, float]] = {}
        for image in content['images']:
            if image['id'] in self.scene_of_image:
                raise ValueError(f'{source}: two images have the id {image["id"]!r}')
            size = image['width'], image['height']
            if not all(isinstance(side, int | float) and side > 0 for side in size):
                raise ValueError(
                    f'{source}: width and height of image {image["id"]!r} must be numbers above 0, '
                    f'got {size}'
                )
            size_of_image[image['id']] = size
            scene = image.get('scene')
            if scene is not None and scene not in scene_label:
                raise ValueError(
                    f'{source}: image {image["id"]!r} has scene {scene!r}, which is not an id in '
                    f'"scenes" (ids {list(scene_label)})'
                )
            self.scene_of_image[image['id']] = None if scene is None else scene_label[scene]
        image_of_box: dict[Any, Any] = {}
        for annotation in content['annotations']:
            if annotation['id'] in image_of_box:
                raise ValueError(f'{source}: two annotations have the id {annotation["id"]!r}')
            if not isinstance(annotation['id'], int):
                raise ValueError(
                    f'{source}: annotation ids must be integers, got {annotation["id"]!r}'
                )
            if annotation['image_id'] not in self.scene_of_image:
                raise ValueError(
                    f'{source}: annotation {annotation["id"]!r} is of image '
                    f'{annotation["image_id"]!r}, which is not in "images"'
                )
            if annotation['category_id'] not in class_label:
                raise ValueError(
                    f'{source}: annotation {annotation["id"]!r} has category_id '
                    f'{annotation["category_id"]!r}, which is not in "categories"'
                )
            image_of_box[annotation['id']] = annotation['image_id']

        boxes = box_array(content['annotations'], source)
        sizes = [size_of_image[annotation['image_id']] for annotation in content['annotations']]
        self.doubt = doubt(boxes, np.array(sizes, np.float64).reshape(-1, 2))

        rows: dict[Any, list[tuple[int, int, int]]] = {}
        for number, relation in enumerate(content['relations']):
            where = f'{source}: relation {number} ({relation})'
            image_id, subject, object_, predicate = (relation[key] for key in _KEYS['relations'])
            if image_id not in self.scene_of_image:
                raise ValueError(f'{where}: no image has the id {image_id!r}')
            for key, box in (('subject_id', subject), ('object_id', object_)):
                if image_of_box.get(box, self) != image_id:
                    raise ValueError(f'{where}: image {image_id!r} has no box with {key} {box!r}')
            if subject == object_:
                raise ValueError(f'{where} joins a box with itself')
            if predicate not in predicate_label:
                raise ValueError(
                    f'{where}: predicate_id {predicate!r} is not in "predicates" '
                    f'(ids {list(predicate_label)})'
                )
            if predicate_label[predicate] is not None:
                rows.setdefault(image_id, []).append((subject, object_, predicate_label[predicate]))
        self._relations = {image: np.array(r, np.int64) for image, r in rows.items()}

    def relations(self, image_id: Any) -> np.ndarray:
        """(R, 3) int64 of subject annotation id, object annotation id, predicate label."""
        return self._relations.get(image_id, np.zeros((0, 3), np.int64))

    def triplets(self, content: Mapping[str, Any]) -> set[tuple[int, int, int]]:
        """The (subject label, object label, predicate label) that occur in ``content``."""
        name = {category['id']: category['name'] for category in content['categories']}
        label = {class_name: i for i, class_name in enumerate(self.classes)}
        label_of_box = {a['id']: label.get(name[a['category_id']]) for a in content['annotations']}
        found = {
            (label_of_box[subject], label_of_box[object_], predicate)
            for rows in self._relations.values()
            for subject, object_, predicate in rows.tolist()
        }
        return {triplet for triplet in found if None not in triplet}

    def _names(
        self, content: Mapping[str, Any], key: str, wanted: Sequence[str] | None
    ) -> tuple[tuple[str, ...], dict[Any, int | None]]:
        """Names in label order, and id -> label (None for a name that is not wanted)."""
        entries = content.get(key, [])
        names = [entry['name'] for entry in entries]
        for what, values in (('ids', [entry['id'] for entry in entries]), ('names', names)):
            if len(set(values)) != len(values):
                raise ValueError(f'{self.source}: {what} in {key!r} are not unique: {values}')
        # A file without any (no scenes, say) takes the names of the metainfo as they are.
        labels = tuple(names if wanted is None else wanted)
        unknown = [name for name in labels if name not in names]
        if unknown and entries:
            raise ValueError(
                f'{self.source} has no {unknown[0]!r} in {key!r}, which the metainfo names; '
                f'it has {names}'
            )
        position = {name: label for label, name in enumerate(labels)}
        return labels, {entry['id']: position.get(entry['name']) for entry in entries}
