"""Extracts predictions and ground truth from a data sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def to_numpy(value: Any) -> np.ndarray:
    """Convert a tensor on any device, MMDetection boxes or an array-like to an array."""
    value = getattr(value, 'tensor', value)  # boxes of MMDetection
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy does not support bfloat16.
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _part(
    sample: Mapping, key: str, fields: Sequence[str], name: str, hint: str
) -> list[np.ndarray]:
    part = sample.get(key)
    missing = [field for field in fields if part is None or field not in part]
    if part is None or missing:
        raise ValueError(f'{name} has no {key}.{missing[0]}: {hint}')
    return [to_numpy(part[field]) for field in fields]


def prediction_of(sample: Mapping, name: str) -> dict[str, np.ndarray]:
    """Prediction for ``scene_graph_recall``, in pixels of the original image.

    Args:
        sample: Data sample as a dict.
        name: Name of the image in error messages.

    Raises:
        ValueError: The sample has no predicted scene graph.
    """
    hint = 'SceneGraphMetric needs the predictions of a scene-graph model'
    bboxes, labels, scores = _part(
        sample, 'pred_instances', ('bboxes', 'labels', 'scores'), name, hint
    )
    pairs, rel_scores = _part(sample, 'pred_relations', ('pairs', 'scores'), name, hint)
    return dict(bboxes=bboxes, labels=labels, scores=scores, pairs=pairs, rel_scores=rel_scores)


def ground_truth_of(sample: Mapping, name: str) -> dict[str, np.ndarray]:
    """Ground truth for ``scene_graph_recall``, in pixels of the original image.

    Also returns ``ignored_bboxes`` (I, 4) and ``ignored_labels`` (I,).

    Args:
        sample: Data sample as a dict.
        name: Name of the image in error messages.

    Raises:
        ValueError: The sample has no ground truth, or was resized but has no ``scale_factor``.
    """
    hint = (
        'the test pipeline must load the ground truth with LoadSceneGraphAnnotations and pack it '
        'with PackSceneGraphInputs'
    )
    bboxes, labels = _part(sample, 'gt_instances', ('bboxes', 'labels'), name, hint)
    pairs, predicates = _part(sample, 'gt_relations', ('pairs', 'labels'), name, hint)
    # Predictions are in pixels of the original image, ground truth in those of the network's input.
    resized = tuple(sample.get('img_shape', ()))[:2] != tuple(sample.get('ori_shape', ()))[:2]
    if 'scale_factor' not in sample and 'img_shape' in sample and resized:
        raise ValueError(
            f'{name} was resized but has no scale_factor: add it to the meta_keys of '
            'PackSceneGraphInputs'
        )
    scale = np.tile(np.asarray(sample.get('scale_factor', (1.0, 1.0)), np.float64)[:2], 2)
    ignored = sample.get('ignored_instances') or {}
    ignored_bboxes = to_numpy(ignored.get('bboxes', np.zeros((0, 4)))).reshape(-1, 4)
    return dict(
        bboxes=bboxes.reshape(-1, 4) / scale,
        labels=labels,
        relations=np.column_stack((pairs.reshape(-1, 2), predicates)),
        ignored_bboxes=ignored_bboxes / scale,
        ignored_labels=to_numpy(ignored.get('labels', np.zeros(0, np.int64))),
    )
