"""Checks and indexes what a scene-graph JSON file adds to COCO's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .boxes import box_array, doubt
from .layouts import own_layout

_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
    'predicates': ('id', 'name'),
    'scenes': ('id', 'name'),
    'relations': ('image_id', 'subject_id', 'object_id', 'predicate_id'),
}

#: COCO id -> label; None for a name that the metainfo does not select.
_Labels = dict[Any, 'int | None']


class RelationIndex:
    """Relations and scene labels of a scene-graph JSON file, by image.

    Args:
        content: The parsed JSON file, in the layout of this package or of SGG-Benchmark
            (:func:`~gclip_mm.scene_graph.datasets.layouts.own_layout`).
        source: Name of the file in error messages.
        metainfo: Names under ``classes``, ``predicates`` and ``scenes``. A missing key is read
            from the file, in the file's order. A subset selects: relations with other predicates
            are left out.

    Raises:
        ValueError: A key is missing, an id is unknown or not unique, a box is not four finite
            numbers, a relation joins boxes of different images or a box with itself, or
            ``metainfo`` names something that the file does not have, or lists the classes in
            another order than the file.

    Attributes:
        classes, predicates, scenes: Names in label order.
        scene_of_image: Image id -> scene label, or None for an image without a scene.
        doubt: A sentence about suspicious boxes, or None.
    """

    def __init__(
        self, content: Mapping[str, Any], source: str, metainfo: Mapping[str, Any]
    ) -> None:
        self.source = source
        content = own_layout(content, source)
        self._check_keys(content)
        self.classes, class_labels = self._names(content, 'categories', metainfo.get('classes'))
        self._check_class_order(content['categories'])
        self.predicates, predicate_labels = self._names(
            content, 'predicates', metainfo.get('predicates')
        )
        self.scenes, scene_labels = self._names(content, 'scenes', metainfo.get('scenes'))

        images, annotations = content['images'], content['annotations']
        self.scene_of_image = self._scenes_by_image(images, scene_labels)
        image_of_box = self._images_by_box(annotations, class_labels)
        self.doubt = self._doubt(images, annotations)
        self._relations = self._relations_by_image(
            content['relations'], image_of_box, predicate_labels
        )

    def relations(self, image_id: Any) -> np.ndarray:
        """(R, 3) int64: subject annotation id, object annotation id, predicate label."""
        return self._relations.get(image_id, np.zeros((0, 3), np.int64))

    def triplets(self, content: Mapping[str, Any]) -> set[tuple[int, int, int]]:
        """The (subject label, object label, predicate label) triplets that occur in ``content``."""
        name = {category['id']: category['name'] for category in content['categories']}
        label = {class_name: i for i, class_name in enumerate(self.classes)}
        label_of_box = {a['id']: label.get(name[a['category_id']]) for a in content['annotations']}
        found: set[tuple[int, int, int]] = set()
        for rows in self._relations.values():
            for subject, object_, predicate in rows.tolist():
                subject_label, object_label = label_of_box[subject], label_of_box[object_]
                if subject_label is not None and object_label is not None:
                    found.add((subject_label, object_label, predicate))
        return found

    def predicate_counts(self) -> np.ndarray:
        """(P,) int64: number of relations of each predicate."""
        labels = [rows[:, 2] for rows in self._relations.values()] or [np.zeros(0, np.int64)]
        return np.bincount(np.concatenate(labels), minlength=len(self.predicates))

    def _check_keys(self, content: Mapping[str, Any]) -> None:
        """Raise unless every list is present and every entry has its required keys."""
        for key, required in _KEYS.items():
            entries = content.get(key, []) if key == 'scenes' else content.get(key)
            if not isinstance(entries, list):
                raise ValueError(
                    f'{self.source} has no list {key!r}; scene graphs are COCO JSON with '
                    '"predicates" and "relations", and "scenes" where images have a scene'
                )
            for number, entry in enumerate(entries):
                missing = [k for k in required if k not in entry]
                if missing:
                    raise ValueError(
                        f'{self.source}: {key}[{number}] has no {missing[0]!r}; '
                        f'it has {sorted(entry)}'
                    )

    def _names(
        self, content: Mapping[str, Any], key: str, wanted: Sequence[str] | None
    ) -> tuple[tuple[str, ...], _Labels]:
        """Names in label order, and id -> label."""
        entries = content.get(key, [])
        names = [entry['name'] for entry in entries]
        for what, values in (('ids', [entry['id'] for entry in entries]), ('names', names)):
            if len(set(values)) != len(values):
                raise ValueError(f'{self.source}: {what} in {key!r} are not unique: {values}')
        # A file without entries (no scenes, for example) takes the names of the metainfo.
        labels = tuple(names if wanted is None else wanted)
        unknown = [name for name in labels if name not in names]
        if unknown and entries:
            raise ValueError(
                f'{self.source} has no {unknown[0]!r} in {key!r}, which the metainfo names; '
                f'it has {names}'
            )
        position = {name: label for label, name in enumerate(labels)}
        return labels, {entry['id']: position.get(entry['name']) for entry in entries}

    def _check_class_order(self, categories: Sequence[Mapping[str, Any]]) -> None:
        # MMDetection, CocoMetric included, numbers classes in the order of the file and ignores
        # the order in the metainfo, so labels and names would not match.
        in_file = [entry['name'] for entry in categories if entry['name'] in self.classes]
        if in_file != list(self.classes):
            raise ValueError(
                f'{self.source} has the classes in the order {in_file}; the metainfo must name '
                f'them in this order, not {list(self.classes)}'
            )

    def _scenes_by_image(
        self, images: Sequence[Mapping[str, Any]], scene_labels: _Labels
    ) -> dict[Any, int | None]:
        """Image id -> scene label. Checks ids, sizes and scenes of the images."""
        scene_of_image: dict[Any, int | None] = {}
        for image in images:
            image_id, scene = image['id'], image.get('scene')
            if image_id in scene_of_image:
                raise ValueError(f'{self.source}: two images have the id {image_id!r}')
            size = image['width'], image['height']
            if not all(isinstance(side, int | float) and side > 0 for side in size):
                raise ValueError(
                    f'{self.source}: width and height of image {image_id!r} must be numbers above '
                    f'0, got {size}'
                )
            if scene is not None and scene not in scene_labels:
                raise ValueError(
                    f'{self.source}: image {image_id!r} has scene {scene!r}, which is not an id '
                    f'in "scenes" (ids {list(scene_labels)})'
                )
            scene_of_image[image_id] = None if scene is None else scene_labels[scene]
        return scene_of_image

    def _images_by_box(
        self, annotations: Sequence[Mapping[str, Any]], class_labels: _Labels
    ) -> dict[int, Any]:
        """Annotation id -> image id. Checks ids, images and categories of the annotations."""
        image_of_box: dict[int, Any] = {}
        for annotation in annotations:
            box_id, image_id = annotation['id'], annotation['image_id']
            if box_id in image_of_box:
                raise ValueError(f'{self.source}: two annotations have the id {box_id!r}')
            if not isinstance(box_id, int):
                raise ValueError(f'{self.source}: annotation ids must be integers, got {box_id!r}')
            if image_id not in self.scene_of_image:
                raise ValueError(
                    f'{self.source}: annotation {box_id!r} belongs to image {image_id!r}, which '
                    'is not in "images"'
                )
            if annotation['category_id'] not in class_labels:
                raise ValueError(
                    f'{self.source}: annotation {box_id!r} has category_id '
                    f'{annotation["category_id"]!r}, which is not in "categories"'
                )
            image_of_box[box_id] = image_id
        return image_of_box

    def _doubt(
        self, images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
    ) -> str | None:
        size_of_image = {image['id']: (image['width'], image['height']) for image in images}
        sizes = [size_of_image[annotation['image_id']] for annotation in annotations]
        boxes = box_array(annotations, self.source)
        return doubt(boxes, np.array(sizes, np.float64).reshape(-1, 2))

    def _relations_by_image(
        self,
        relations: Sequence[Mapping[str, Any]],
        image_of_box: Mapping[int, Any],
        predicate_labels: _Labels,
    ) -> dict[Any, np.ndarray]:
        """Image id -> (R, 3) int64 rows. Checks both ends and the predicate of every relation."""
        rows: dict[Any, list[tuple[int, int, int]]] = {}
        for number, relation in enumerate(relations):
            where = f'{self.source}: relation {number} ({relation})'
            image_id, subject, object_, predicate = (relation[key] for key in _KEYS['relations'])
            if image_id not in self.scene_of_image:
                raise ValueError(f'{where}: no image has the id {image_id!r}')
            for key, box in (('subject_id', subject), ('object_id', object_)):
                # `self` equals no image id, not even None.
                if image_of_box.get(box, self) != image_id:
                    raise ValueError(f'{where}: image {image_id!r} has no box with {key} {box!r}')
            if subject == object_:
                raise ValueError(f'{where} joins a box with itself')
            if predicate not in predicate_labels:
                raise ValueError(
                    f'{where}: predicate_id {predicate!r} is not in "predicates" '
                    f'(ids {list(predicate_labels)})'
                )
            label = predicate_labels[predicate]
            if label is not None:
                rows.setdefault(image_id, []).append((subject, object_, label))
        return {image: np.array(r, np.int64) for image, r in rows.items()}
