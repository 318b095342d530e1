"""Matching by masks: OpenPSG's rule, and the protocol with a single mask for each object (NumPy).

- ``mask``: OpenPSG (Yang et al., arXiv 2207.11247): a predicted triplet hits if both its masks have
  an IoU of at least 0.5 with those of the ground truth. Several masks of one object all count.
- ``single_mask``: Lorenz et al., arXiv 2407.09216, who show that models gain from several masks for
  one object: masks are merged first (:func:`~gclip_mm.scene_graph.segments.merge_masks`), of a pair
  that is predicted several times the best one counts, and predicted and true objects are matched
  one to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..segments import mask_iou, masks_of, merge_masks, read_segments, scale_masks
from .samples import to_numpy

MATCHES = ('box', 'mask', 'single_mask')


def check_match(match: str) -> str:
    """``match``, if it is one of :data:`MATCHES`.

    Raises:
        ValueError: It is not.
    """
    if match not in MATCHES:
        raise ValueError(f'match must be one of {MATCHES}, got {match!r}')
    return match


def by_masks(
    sample: Mapping[str, Any],
    prediction: dict[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    match: str,
    given_boxes: bool,
    iou_thr: float,
    name: str,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The prediction to match, and the IoU of its objects with those of the ground truth.

    Args:
        sample: Data sample with ``gt_instances.segment_ids`` and ``seg_map_path``, and predicted
            masks in ``pred_instances.masks`` unless the boxes are given.
        prediction, truth: As for :func:`.recall.scene_graph_recall`.
        match: ``'mask'`` or ``'single_mask'``.
        given_boxes: Predicted object i is true object i, and has its mask (PredCls, SGCls).
        iou_thr: Smallest IoU of a match.
        name: Of the image, in error messages.

    Returns:
        The prediction, merged for ``'single_mask'``, and an array (N, G) float64.

    Raises:
        ValueError: The sample has no masks.
    """
    true_masks = ground_truth_masks(sample, name)
    if given_boxes:
        masks = true_masks
        if len(prediction['bboxes']) != len(true_masks):
            raise ValueError(
                f'{name}: {len(true_masks)} objects are given but '
                f'{len(prediction["bboxes"])} are predicted'
            )
    else:
        masks = predicted_masks(sample, true_masks.shape[1:], name)
    if match == 'mask':
        return prediction, mask_iou(masks, true_masks)
    if not given_boxes:
        prediction, masks = one_mask_each(prediction, masks)
    iou = mask_iou(masks, true_masks)
    return prediction, one_to_one(iou, prediction['labels'], truth['labels'], iou_thr)


def ground_truth_masks(sample: Mapping[str, Any], name: str) -> np.ndarray:
    """(G, H, W) bool, in pixels of the original image.

    Raises:
        ValueError: The data pipeline does not load segments.
    """
    instances = sample.get('gt_instances') or {}
    path = sample.get('seg_map_path')
    if path is None or 'segment_ids' not in instances:
        missing = 'seg_map_path' if path is None else 'gt_instances.segment_ids'
        raise ValueError(
            f'{name} has no {missing}: matching by masks needs LoadSceneGraphAnnotations('
            "with_seg=True) and 'seg_map_path' in the meta_keys of PackSceneGraphInputs"
        )
    return masks_of(read_segments(path), to_numpy(instances['segment_ids']))


def predicted_masks(sample: Mapping[str, Any], size: tuple[int, ...], name: str) -> np.ndarray:
    """(N, H, W) bool of the predicted objects, in pixels of the original image.

    Raises:
        ValueError: The model predicts no masks.
    """
    instances = sample['pred_instances']
    if 'masks' not in instances:
        raise ValueError(
            f'{name} has no pred_instances.masks: matching by masks needs a detector with masks, '
            'or given boxes (protocol predcls or sgcls)'
        )
    masks = instances['masks']
    array = to_numpy(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks)
    return scale_masks(array.astype(bool).reshape(-1, *array.shape[-2:]), size)


def one_mask_each(
    prediction: dict[str, np.ndarray], masks: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Merge the masks and what is predicted for them; of equal pairs the best triplet is kept."""
    scores = np.asarray(prediction['scores'], np.float64)
    merged, became = merge_masks(masks, scores)
    # The first, best mask of a group gives box, label and score.
    order = np.argsort(-scores, kind='stable')
    order = order[became[order] >= 0]
    first = order[np.unique(became[order], return_index=True)[1]]
    old = np.asarray(prediction['pairs'], np.int64).reshape(-1, 2)
    rel_scores = np.asarray(prediction['rel_scores'], np.float64)
    if not len(rel_scores):
        rel_scores = rel_scores.reshape(0, rel_scores.shape[-1] if rel_scores.ndim == 2 else 0)
    pairs = became[old]
    # A pair within one merged object cannot hit, but keeps its rank, as published.
    usable = np.flatnonzero((pairs >= 0).all(axis=1))
    if len(usable):
        rank = scores[old[usable]].prod(axis=1) * rel_scores[usable].max(axis=1)
        usable = usable[np.argsort(-rank, kind='stable')]
        usable = np.sort(usable[np.unique(pairs[usable], axis=0, return_index=True)[1]])
    return (
        dict(
            bboxes=np.asarray(prediction['bboxes'])[first],
            labels=np.asarray(prediction['labels'])[first],
            scores=scores[first],
            pairs=pairs[usable],
            rel_scores=rel_scores[usable],
        ),
        merged,
    )


def one_to_one(
    iou: np.ndarray, labels: np.ndarray, true_labels: np.ndarray, iou_thr: float
) -> np.ndarray:
    """IoU (N, G) that is 0 but for the matches: at most one for each object on either side.

    A predicted object belongs to the true object of its class with the highest IoU, if that is
    above ``iou_thr``; of several for one true object the one with the highest IoU counts.
    """
    matched = np.zeros_like(iou)
    if not iou.size:
        return matched
    same = np.where(labels[:, None] == true_labels[None], iou, 0.0)
    mine = same.argmax(axis=1)
    best = same[np.arange(len(same)), mine]
    best = np.where(best > iou_thr, best, 0.0)
    for true in np.unique(mine[best > 0]).tolist():
        rows = np.flatnonzero((mine == true) & (best > 0))
        row = rows[best[rows].argmax()]
        matched[row, true] = best[row]
    return matched
