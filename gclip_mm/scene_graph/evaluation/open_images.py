"""The metrics of Open Images visual relationship detection (pure NumPy).

Source: Zhang et al., Graphical Contrastive Losses for Scene Graph Parsing, arXiv 1903.02728, after
the Open Images Challenge 2018; reported for scene graphs by Li et al., arXiv 2104.00308.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..boxes import box_iou, pair_unions
from .matching import NO_HIT, check_graphs, top_indices

#: Triplets of an image that are used, predicates of a pair that compete, and the score that a
#: triplet has to exceed.
MAX_TRIPLETS, PREDICATES_PER_PAIR, MIN_SCORE = 100, 2, 1e-5
_KINDS = ('rel', 'phr')


class ImageDetections(NamedTuple):
    """The triplets of one image, compared with its relations.

    Attributes:
        predicates: (D,) int64, of the D <= 100 best triplets, best first.
        scores: (D,) float64.
        rel: (D,) bool, whether a triplet is a true positive: both boxes match.
        phr: (D,) bool, the same for phrases: the box around both matches.
        rank: (R,) int32, rank of the first triplet that hits each relation, for R@K.
        gt_predicates: (R,) int64.
    """

    predicates: np.ndarray
    scores: np.ndarray
    rel: np.ndarray
    phr: np.ndarray
    rank: np.ndarray
    gt_predicates: np.ndarray


def match_detections(
    prediction: Mapping[str, np.ndarray],
    ground_truth: Mapping[str, np.ndarray],
    num_predicates: int | None = None,
    iou_thr: float = 0.5,
    ap_plus_one: bool | str = True,
    name: str = 'image',
) -> ImageDetections:
    """Compare the triplets of an image with its relations.

    A triplet is assigned to the relation of the same predicate, subject class and object class
    with the highest IoU (the smaller one of both boxes, or that of the box around them). It is a
    true positive if that IoU exceeds ``iou_thr`` and no better triplet has the same relation.
    Arguments as for :func:`~gclip_mm.scene_graph.evaluation.match_image`; widths and heights
    include the last pixel.

    Raises:
        ValueError: An array is missing, has a wrong shape, holds NaN or an index out of range.
    """
    arrays = check_graphs(prediction, ground_truth, num_predicates, name)
    boxes, labels, scores, pairs, rel_scores, gt_boxes, gt_labels, relations = arrays
    if not len(pairs):
        none, miss = np.zeros(0, bool), np.full(len(relations), NO_HIT, np.int32)
        empty = np.zeros(0, np.int64)
        return ImageDetections(empty, np.zeros(0), none, none, miss, relations[:, 2])
    order = np.argsort(-rel_scores, axis=1, kind='stable')[:, :PREDICATES_PER_PAIR]
    best = np.take_along_axis(rel_scores, order, axis=1)
    totals = (scores[pairs[:, 0]] * scores[pairs[:, 1]])[:, None] * best
    rows, columns = np.divmod(top_indices(totals.ravel(), MAX_TRIPLETS), totals.shape[1])
    kept = totals[rows, columns] > MIN_SCORE
    rows, columns = rows[kept], columns[kept]
    pairs, predicates, found = pairs[rows], order[rows, columns], totals[rows, columns]

    subjects, objects = gt_boxes[relations[:, 0]], gt_boxes[relations[:, 1]]
    same = predicates[:, None] == relations[:, 2]
    same &= labels[pairs[:, 0], None] == gt_labels[relations[:, 0]]
    same &= labels[pairs[:, 1], None] == gt_labels[relations[:, 1]]

    def iou_of_both(plus_one: bool | str) -> np.ndarray:
        return np.minimum(
            box_iou(boxes[pairs[:, 0]], subjects, plus_one),
            box_iou(boxes[pairs[:, 1]], objects, plus_one),
        )

    around = box_iou(pair_unions(boxes, pairs), pair_unions(gt_boxes, relations), ap_plus_one)
    # Recall includes the threshold, average precision does not, as published.
    hits = same & (iou_of_both(True) >= iou_thr)
    rank = np.full(len(relations), NO_HIT, np.int32)
    if len(predicates):
        rank = np.where(hits.any(0), hits.argmax(0), NO_HIT).astype(np.int32)
    return ImageDetections(
        predicates,
        found,
        _true_positives(iou_of_both(ap_plus_one) * same, iou_thr),
        _true_positives(around * same, iou_thr),
        rank,
        relations[:, 2],
    )


def _true_positives(overlap: np.ndarray, iou_thr: float) -> np.ndarray:
    """(D,) bool: the first of the rows (D, R) that claims its best column above the threshold."""
    result = np.zeros(len(overlap), bool)
    if not overlap.size:
        return result
    best = overlap.argmax(axis=1)
    claims = np.flatnonzero(overlap[np.arange(len(overlap)), best] > iou_thr)
    result[claims[np.unique(best[claims], return_index=True)[1]]] = True
    return result


def average_precision(true: np.ndarray, scores: np.ndarray, positives: int) -> float:
    """Area under the precision envelope, as in PASCAL VOC since 2010; 0 without positives."""
    if not positives or not len(true):
        return 0.0
    hits = np.cumsum(true[np.argsort(-scores, kind='stable')])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / positives
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def summarize_detections(
    images: Sequence[ImageDetections], num_predicates: int, ks: Sequence[int] = (50, 100)
) -> dict[str, float]:
    """Compute the metrics; see :func:`open_images_vrd`."""
    gt = np.concatenate([image.gt_predicates for image in images] or [np.zeros(0, np.int64)])
    positives = np.bincount(gt, minlength=num_predicates)
    rank = np.concatenate([image.rank for image in images] or [np.zeros(0, np.int32)])
    nan = float('nan')
    result = {f'R@{k}': float(np.mean(rank < k)) if len(rank) else nan for k in ks}
    predicates, scores = (
        np.concatenate([getattr(image, key) for image in images] or [np.zeros(0)])
        for key in ('predicates', 'scores')
    )
    for kind in _KINDS:
        true = np.concatenate([getattr(image, kind) for image in images] or [np.zeros(0, bool)])
        aps = np.array(
            [
                average_precision(true[predicates == p], scores[predicates == p], positives[p])
                for p in range(num_predicates)
            ]
        )
        result[f'mAP_{kind}'] = float(aps.mean()) if len(gt) else nan
        result[f'wmAP_{kind}'] = float(aps @ positives / len(gt)) if len(gt) else nan
    recall = float(np.mean(rank < 50)) if len(rank) else nan
    for key, prefix in (('score', 'mAP'), ('score_wtd', 'wmAP')):
        aps_of_kinds = result[f'{prefix}_rel'] + result[f'{prefix}_phr']
        result[key] = 0.2 * recall + 0.4 * aps_of_kinds
    return result


def open_images_vrd(
    predictions: Iterable[Mapping[str, np.ndarray]],
    ground_truths: Iterable[Mapping[str, np.ndarray]],
    num_predicates: int,
    ks: Sequence[int] = (50, 100),
    iou_thr: float = 0.5,
    ap_plus_one: bool | str = True,
) -> dict[str, float]:
    """Evaluate relations as Open Images visual relationship detection does.

    Uses the 100 best triplets of an image; the two best predicates of a pair compete. Average
    precision is computed for each predicate over all images. ``mAP`` is its mean over all
    predicates, ``wmAP`` weights each by its share of the relations.

    Args:
        predictions, ground_truths: As for
            :func:`~gclip_mm.scene_graph.evaluation.scene_graph_recall`.
        num_predicates: P.
        ks: Values of K in R@K.
        iou_thr: IoU that boxes have to exceed.
        ap_plus_one: ``plus_one`` of :func:`~gclip_mm.scene_graph.evaluation.box_iou` for the
            average precision. PySGG: True. EGTR: ``'intersection'``.

    Returns:
        ``R@K`` (pooled), ``mAP_rel``, ``wmAP_rel``, ``mAP_phr``, ``wmAP_phr``; ``score`` is
        ``0.4 mAP_rel + 0.2 R@50 + 0.4 mAP_phr``, and ``score_wtd`` the same with ``wmAP``. NaN
        without relations.
    """
    pairs = enumerate(zip(predictions, ground_truths, strict=True))
    images = [
        match_detections(p, t, num_predicates, iou_thr, ap_plus_one, name=f'image {i}')
        for i, (p, t) in pairs
    ]
    return summarize_detections(images, num_predicates, ks)
