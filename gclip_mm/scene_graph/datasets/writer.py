"""Writes scene-graph JSON files, whole or not at all. Needs neither MMDetection nor MMEngine."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .relation_index import RelationIndex


class SceneGraphWriter:
    """Collects images with boxes and relations into a file for :class:`SceneGraphDataset`.

    Args:
        classes: Names of the object classes; their COCO ids count from 1.
        predicates: Names of the predicates; their ids count from 0.
        scenes: Names of the scene classes, if there are any; their ids count from 0.
        info: What ``info`` in the file says. ``convention`` in it names the convention under
            which results on these data are published.
        things: For each class whether it is a thing (or stuff), where that is known.

    Raises:
        ValueError: If ``classes`` or ``predicates`` is empty or has a name twice.

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
                raise ValueError(f'{what} must be names, each once; got {names}, twice: {twice}')
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
        boxes: np.ndarray,
        labels: np.ndarray,
        relations: np.ndarray,
        scene: int | None = None,
        image_id: int | None = None,
        crowd: np.ndarray | None = None,
    ) -> int:
        """Add an image. Boxes are clipped to it.

        Args:
            file_name: Below the folder of the images.
            width, height: In pixels.
            boxes: (N, 4) xyxy in pixels.
            labels: (N,) int, 0-based.
            relations: (R, 3) int of subject and object, indices into ``boxes``, and predicate,
                0-based. One of a box with itself is left out.
            scene: Scene label, 0-based.
            image_id: None counts from 1.
            crowd: (N,) bool, boxes of groups, to be ignored.

        Returns:
            The image's id.

        Raises:
            ValueError: If an index is out of range, or the size of the image is not positive.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        labels = np.asarray(labels, np.int64).reshape(-1)
        relations = np.asarray(relations, np.int64).reshape(-1, 3)
        if width <= 0 or height <= 0:
            raise ValueError(f'{file_name}: the size of the image is {width} x {height}')
        if len(boxes) != len(labels):
            raise ValueError(f'{file_name}: {len(boxes)} boxes but {len(labels)} labels')
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
        to_itself = relations[:, 0] == relations[:, 1]
        self.repaired['relations of a box with itself left out'] += int(to_itself.sum())
        relations = relations[~to_itself]
        clipped = np.clip(boxes, 0, [width, height, width, height])
        self.repaired['boxes clipped to the image'] += int((clipped != boxes).any(axis=1).sum())
        image_id = len(self.content['images']) + 1 if image_id is None else image_id
        image = dict(id=image_id, file_name=file_name, width=int(width), height=int(height))
        if scene is not None:
            image['scene'] = scene
        self.content['images'].append(image)
        first = len(self.content['annotations']) + 1
        sizes = clipped[:, 2:] - clipped[:, :2]
        for i, (box, label, size) in enumerate(zip(clipped, labels, sizes, strict=True)):
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
        self.repaired['boxes thinner than a pixel, which the loader leaves out'] += int(
            (sizes < 1).any(axis=1).sum()
        )
        for subject, object_, predicate in relations.tolist():
            self.content['relations'].append(
                dict(
                    image_id=image_id,
                    subject_id=first + subject,
                    object_id=first + object_,
                    predicate_id=predicate,
                )
            )
        return image_id

    def write(self, path: str | Path, overwrite: bool = False) -> str:
        """Check everything and write the file; it appears only when it is complete.

        Returns:
            A summary to show to the user.

        Raises:
            FileExistsError: If the file is there and ``overwrite`` is not set.
            ValueError: If there is no image, or two have the same id.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f'{path} is there already; pass --overwrite to replace it')
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
