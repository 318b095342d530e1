"""Writes scene-graph JSON files atomically. Needs neither MMDetection nor MMEngine."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .relation_index import RelationIndex


class SceneGraphWriter:
    """Collects images with boxes and relations into a file for :class:`SceneGraphDataset`.

    Args:
        classes: Names of the object classes; their COCO ids count from 1.
        predicates: Names of the predicates; their ids count from 0.
        scenes: Names of the scene classes, if any; their ids count from 0.
        info: Content of ``info`` in the file. Its ``convention`` names the metric convention under
            which results on these data are published.
        things: Whether each class is a thing (True) or stuff (False), if known.

    Raises:
        ValueError: ``classes`` or ``predicates`` is empty or has a duplicate.

    Example:
        >>> writer = SceneGraphWriter(['dog', 'sofa'], ['on'], info={'description': 'mine'})
        >>> writer.add_image('1.jpg', 640, 480, boxes=[[0, 0, 50, 60], [10, 40, 300, 200]],
        ...                  labels=[0, 1], relations=[[0, 1, 0]])
        >>> writer.write('data/mine/train.json')
    """

    def __init__(
        self,
        classes: Sequence[str],
        predicates: Sequence[str],
        scenes: Sequence[str] = (),
        info: Mapping[str, Any] | None = None,
        things: Sequence[bool] | None = None,
    ) -> None:
        for what, names in (('classes', classes), ('predicates', predicates)):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if not names or twice:
                raise ValueError(f'{what} must be unique names; got {names}, duplicates: {twice}')
        self.content: dict[str, Any] = dict(
            info=dict(info or {}),
            images=[],
            annotations=[],
            categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
            predicates=[dict(id=i, name=name) for i, name in enumerate(predicates)],
            scenes=[dict(id=i, name=name) for i, name in enumerate(scenes)],
            relations=[],
        )
        for category, thing in zip(self.content['categories'], things or (), strict=bool(things)):
            category['isthing'] = int(thing)
        self.repaired: Counter[str] = Counter()

    def add_image(
        self,
        file_name: str,
        width: int,
        height: int,
        boxes: ArrayLike,
        labels: ArrayLike,
        relations: ArrayLike,
        scene: int | None = None,
        image_id: int | None = None,
        crowd: Sequence[bool] | np.ndarray | None = None,
        segments: tuple[str, Sequence[int]] | None = None,
    ) -> int:
        """Add an image. Boxes are clipped to the image.

        Args:
            file_name: Path relative to the folder of the images.
            width, height: In pixels.
            boxes: (N, 4) xyxy in pixels.
            labels: (N,) int, 0-based.
            relations: (R, 3) int: subject and object as indices into ``boxes``, and predicate,
                0-based. A relation of a box with itself is dropped.
            scene: Scene label, 0-based.
            image_id: Id of the image. None: number of the image, from 1.
            crowd: (N,) bool, True for boxes of groups, which training ignores.
            segments: Panoptic PNG, relative to the folder of such pictures, and the id in it of
                the segment of each of the N boxes.

        Returns:
            Id of the image.

        Raises:
            ValueError: An index is out of range, or the image size is not positive.
        """
        xyxy = np.asarray(boxes, np.float64).reshape(-1, 4)
        classes = np.asarray(labels, np.int64).reshape(-1)
        triplets = np.asarray(relations, np.int64).reshape(-1, 3)
        if width <= 0 or height <= 0:
            raise ValueError(f'{file_name}: the size of the image is {width} x {height}')
        if len(xyxy) != len(classes):
            raise ValueError(f'{file_name}: {len(xyxy)} boxes but {len(classes)} labels')
        self._check(file_name, xyxy, classes, triplets)
        to_itself = triplets[:, 0] == triplets[:, 1]
        self.repaired['relations of a box with itself dropped'] += int(to_itself.sum())
        clipped = np.clip(xyxy, 0, [width, height, width, height])
        self.repaired['boxes clipped to the image'] += int((clipped != xyxy).any(axis=1).sum())
        image_id = len(self.content['images']) + 1 if image_id is None else image_id
        image = dict(id=image_id, file_name=file_name, width=int(width), height=int(height))
        if scene is not None:
            image['scene'] = scene
        if segments is not None:
            image['pan_seg_file_name'] = segments[0]
        self.content['images'].append(image)
        first = self._add_boxes(image_id, clipped, classes, crowd)
        if segments is not None:
            added = self.content['annotations'][first - 1 :]
            for annotation, segment_id in zip(added, segments[1], strict=True):
                annotation['segment_id'] = int(segment_id)
        for subject, object_, predicate in triplets[~to_itself].tolist():
            self.content['relations'].append(
                dict(
                    image_id=image_id,
                    subject_id=first + subject,
                    object_id=first + object_,
                    predicate_id=predicate,
                )
            )
        return image_id

    def _check(
        self, file_name: str, boxes: np.ndarray, labels: np.ndarray, relations: np.ndarray
    ) -> None:
        """Raise a ValueError if an index is out of range or a box is not finite."""
        limits = (
            ('labels', labels, len(self.content['categories'])),
            ('subjects and objects', relations[:, :2], len(boxes)),
            ('predicates', relations[:, 2], len(self.content['predicates'])),
        )
        for what, array, stop in limits:
            if array.size and (array.min() < 0 or array.max() >= stop):
                raise ValueError(
                    f'{file_name}: {what} must be in [0, {stop}), got {array.min()}..{array.max()}'
                )
        if not np.isfinite(boxes).all():
            raise ValueError(f'{file_name}: a box has NaN or infinite coordinates')

    def _add_boxes(
        self,
        image_id: int,
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: Sequence[bool] | np.ndarray | None,
    ) -> int:
        """Append annotations for the boxes (N, 4) xyxy of an image; return the first id."""
        first = len(self.content['annotations']) + 1
        sizes = boxes[:, 2:] - boxes[:, :2]
        for i, (box, label, size) in enumerate(zip(boxes, labels, sizes, strict=True)):
            self.content['annotations'].append(
                dict(
                    id=first + i,
                    image_id=image_id,
                    category_id=int(label) + 1,
                    bbox=[round(float(v), 3) for v in (*box[:2], *size)],
                    area=round(float(size[0] * size[1]), 3),
                    iscrowd=int(crowd[i]) if crowd is not None else 0,
                )
            )
        self.repaired['boxes thinner than a pixel, which training drops'] += int(
            (sizes < 1).any(axis=1).sum()
        )
        return first

    def write(self, path: str | Path, overwrite: bool = False) -> str:
        """Check the content and write the file atomically.

        Args:
            path: File to write. Its folder is created if needed.
            overwrite: Replace an existing file.

        Returns:
            A summary for the user.

        Raises:
            FileExistsError: The file exists and ``overwrite`` is not set.
            ValueError: No image was added, or two images have the same id.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f'{path} exists; pass --overwrite to replace it')
        if not self.content['images']:
            raise ValueError(f'no image is left for {path}')
        RelationIndex(self.content, str(path), {})
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'.{path.name}.partial')
        try:
            with partial.open('w', encoding='utf-8') as file:
                json.dump(self.content, file, separators=(',', ':'))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        counts = {key: len(self.content[key]) for key in ('images', 'annotations', 'relations')}
        lines = [
            f'{path}: {counts["images"]} images, {counts["annotations"]} boxes, '
            f'{counts["relations"]} relations'
        ]
        lines += [f'  {count} {what}' for what, count in sorted(self.repaired.items()) if count]
        return '\n'.join(lines)
