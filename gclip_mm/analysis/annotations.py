"""Annotations of single images in the data set of a config, and faults of boxes and pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

# Pixels by which a box may exceed the image: tools count corners from 0 or from 1.
_SLACK = 1.5
# An image in which more than this share of the values is 0 or 255 counts as damaged.
_SATURATED = 0.5
#: RGB in which pixels that are not finite are drawn.
NOT_FINITE = (227, 23, 10)


class Annotation(NamedTuple):
    """The annotation of an image.

    Attributes:
        path: of the image.
        img_id: its id in the data set.
        boxes: (N, 4) float, x1, y1, x2, y2 in pixels.
        labels: N class names.
        ignored: (N,) bool, boxes that training ignores.
    """

    path: str
    img_id: Any
    boxes: np.ndarray
    labels: list[str]
    ignored: np.ndarray


class AnnotationIndex:
    """Finds the annotation of an image by its path or id.

    Works with every MMEngine data set for detection (COCO JSON, VOC XML, ...), and searches
    wrappers such as ``RepeatDataset`` and ``ConcatDataset``.

    Args:
        cfg: a complete config; its ``train_dataloader.dataset`` is built, without its pipeline.

    Raises:
        ValueError: the config has no training data set.
    """

    def __init__(self, cfg: Config) -> None:
        dataset = (cfg.get('train_dataloader') or {}).get('dataset')
        if dataset is None:
            raise ValueError('the config has no train_dataloader.dataset')
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        self._by_path: dict[str, Annotation] = {}
        self._by_id: dict[Any, Annotation] = {}
        for leaf in _leaves(dataset):
            self._add(DATASETS.build({**leaf, 'pipeline': []}))

    def __len__(self) -> int:
        return len(self._by_path)

    def find(self, path: str | None, img_id: Any = None) -> Annotation | None:
        """The annotation of an image; None if the data set has no such image."""
        if path is not None:
            return self._by_path.get(_normal(path))
        return self._by_id.get(img_id)

    def _add(self, dataset: Any) -> None:
        classes = (dataset.metainfo or {}).get('classes') or ()
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            boxes = [instance['bbox'] for instance in info.get('instances', [])]
            annotation = Annotation(
                info['img_path'],
                info.get('img_id'),
                np.array(boxes, float).reshape(-1, 4),
                [_label(x.get('bbox_label'), classes) for x in info.get('instances', [])],
                np.array([x.get('ignore_flag', 0) for x in info.get('instances', [])], bool),
            )
            self._by_path[_normal(annotation.path)] = annotation
            self._by_id[annotation.img_id] = annotation


def _leaves(dataset: dict) -> Iterator[dict]:
    inner = dataset.get('dataset') or dataset.get('datasets')
    if isinstance(inner, dict):
        yield from _leaves(inner)
    elif isinstance(inner, list | tuple):
        for item in inner:
            yield from _leaves(item)
    else:
        yield dataset


def _normal(path: str) -> str:
    return os.path.realpath(path) if '://' not in path else path


def _label(index: int | None, classes: tuple[str, ...]) -> str:
    if index is None:
        return '?'
    return classes[index] if 0 <= index < len(classes) else f'class {index}'


def box_faults(boxes: np.ndarray, height: int, width: int) -> list[str | None]:
    """The fault of each box (N, 4), in words; None for a box without one."""
    faults: list[str | None] = []
    for x1, y1, x2, y2 in boxes:
        if not np.isfinite([x1, y1, x2, y2]).all():
            faults.append('not finite')
        elif x2 <= x1 or y2 <= y1:
            faults.append(f'empty, {x2 - x1:g} x {y2 - y1:g}')
        elif min(x1, y1) < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
            faults.append(f'outside the image, {x2 - x1:g} x {y2 - y1:g}')
        else:
            faults.append(None)
    return faults


def read_pixels(path: str) -> tuple[np.ndarray | None, str | None]:
    """The pixels of an image file for a picture, and their fault in words.

    Floating-point files, which ``color_type='unchanged'`` loads, are read too; their pixels that
    are not finite become :data:`NOT_FINITE`.

    Returns:
        (H, W, 3) uint8, RGB, or None if the file cannot be read; the fault, or None.
    """
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if image is None:
        return None, 'cannot be read'
    if image.dtype.kind != 'f':
        image = cv2.imread(path)
        if image is None:
            return None, 'cannot be read'
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return image, pixel_fault(image)
    image = image[..., None] if image.ndim == 2 else image[..., 2::-1]
    image = np.broadcast_to(image[..., :3], (*image.shape[:2], 3))
    bad = np.asarray(~np.isfinite(image).all(axis=-1))
    pixels = np.where(bad[..., None], 0, image)
    # Values up to 1 are fractions.
    pixels = (pixels * (255 if pixels.max() <= 1 else 1)).clip(0, 255).astype(np.uint8)
    if not bad.any():
        return pixels, pixel_fault(pixels)
    pixels[bad] = NOT_FINITE
    count = int(bad.sum())
    return pixels, f'{count} pixel{"s are" if count > 1 else " is"} not finite'


def pixel_fault(image: np.ndarray) -> str | None:
    """The fault of the pixels (H, W, 3) of an image, in words; None if there is none."""
    if image.min() == image.max():
        return 'one colour all over'
    share = float(((image == 0) | (image == 255)).mean())
    return f'{share:.0%} of the values are 0 or 255' if share > _SATURATED else None
