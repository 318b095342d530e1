"""Checks of :class:`SceneGraphCheckHook` that need transforms, weights or counts of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from logging import Logger
from typing import Any

import numpy as np
import torch
from mmcv.transforms import RandomFlip
from torch import nn

from ..models.protocol import SceneGraphProtocol

#: Number of images of a data set whose objects are counted.
_COUNTED_IMAGES = 2000


def check_flips(dataset: Any, where: str, outer: tuple = ()) -> None:
    """Check that the data set says which predicates the flips of its pipeline swap.

    Args:
        dataset: A data set, or a wrapper around several.
        where: 'train', 'val' or 'test', for the error.
        outer: Transforms of wrappers around the data set.

    Raises:
        ValueError: A flip would invalidate predicates such as *left of*.
    """
    transforms = (*outer, *_transforms(getattr(dataset, 'pipeline', None)))
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for part in parts:
        if part is not None:
            check_flips(part, where, transforms)
    flips = getattr(dataset, '_predicate_flips', None)
    if flips is None:
        return
    for transform in transforms:
        for direction in _directions(transform):
            try:
                flips.apply(np.zeros(0, np.int64), direction)
            except ValueError as error:
                raise ValueError(f'the pipeline of the {where} set flips images: {error}') from None


def _transforms(pipeline: Any) -> Iterator[Any]:
    """All transforms of a pipeline, those inside of others included."""
    if isinstance(pipeline, list | tuple):
        for transform in pipeline:
            yield from _transforms(transform)
    elif pipeline is not None:
        yield pipeline
        yield from _transforms(getattr(pipeline, 'transforms', None))


def _directions(transform: Any) -> list[str]:
    """The directions in which a transform may flip."""
    if not isinstance(transform, RandomFlip):
        return []
    directions, prob = transform.direction, transform.prob
    directions = [directions] if isinstance(directions, str) else list(directions)
    if isinstance(prob, list | tuple):
        return [d for d, p in zip(directions, prob, strict=True) if p]
    return directions if prob else []


def check_max_objects(model: Any, dataset: Any, where: str, logger: Logger) -> None:
    """Warn about images with more objects than SGDet may predict."""
    if model.protocol is not SceneGraphProtocol.SGDET or not hasattr(dataset, 'get_data_info'):
        return
    key, most = model.relations.object_limit
    if most is None:
        return
    step = max(1, len(dataset) // _COUNTED_IMAGES)
    counts = [
        sum(not i['ignore_flag'] for i in dataset.get_data_info(index).get('instances', ()))
        for index in range(0, len(dataset), step)
    ]
    crowded = sum(count > most for count in counts)
    if crowded:
        logger.warning(
            f'{crowded} of {len(counts)} checked images of the {where} set have more than '
            f'{key}={most} objects (up to {max(counts)}): relations of the others cannot be found. '
            'Set it to the number of objects that you expect'
        )


def _is_pretrained(init_cfg: Any) -> bool:
    configs: Iterable = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg or {}]
    return any(cfg.get('type') == 'Pretrained' for cfg in configs)


def check_detector_loaded(model: Any, logger: Logger) -> None:
    """Check that a frozen detector has trained weights, where no checkpoint was loaded.

    Raises:
        ValueError: All its weights are random.
    """
    if not model.freeze_detector or _is_pretrained(getattr(model, 'init_cfg', None)):
        return
    modules = [module for part in model.detector_parts for module in part.modules()]
    pretrained = [m for m in modules if _is_pretrained(getattr(m, 'init_cfg', None))]
    remedy = (
        'set load_from to the checkpoint of a trained detector, or model.freeze_detector=False '
        'to train it too'
    )
    if not pretrained:
        raise ValueError(
            'model.freeze_detector=True, but no checkpoint was loaded: the relations would be '
            f'trained on the features of random weights; {remedy}'
        )
    logger.warning(
        'model.freeze_detector=True, and no checkpoint was loaded: only '
        f'{", ".join(sorted({type(m).__name__ for m in pretrained}))} has pretrained weights, and '
        f'the rest of the frozen detector stays random; {remedy}'
    )


def check_finite(model: nn.Module) -> None:
    """Check that all weights and buffers are finite.

    A detector with NaN finds nothing, so that SGDet would report a recall of 0 and no error.

    Raises:
        ValueError: One is not; the message names the first.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    wrong = [name for name, t in tensors if t.is_floating_point() and not torch.isfinite(t).all()]
    if wrong:
        raise ValueError(
            f'{len(wrong)} of {len(tensors)} weights of the model hold NaN or infinite values, '
            f'the first is {wrong[0]}: its training has diverged, and it cannot be evaluated'
        )
