"""Matches the predicted triplets of one image with its ground-truth relations (pure NumPy).

The recall metrics need only the rank at which each ground-truth relation is first hit: R@K, mean
R@K, zero-shot R@K, A@K and phrase detection are counts of ``rank < K``, for every K. So each image
is matched once, and only a few integers per ground-truth relation are kept and sent between
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..boxes import box_iou, pair_unions
from .options import RecallOptions

#: Rank of a ground-truth relation that is not hit by any of the first ``max_k`` triplets.
NO_HIT = np.iinfo(np.int32).max


class ImageMatch(NamedTuple):
    """Ranks at which the predictions of one image hit its R ground-truth relations.

    A rank is 0-based and that of the first hit, or :data:`NO_HIT`. All are (R,) int32.

    Attributes:
        predicates: (R,) int64, predicate of each ground-truth relation.
        zero_shot: (R,) bool, whether its (subject class, object class, predicate) is one of the
            zero-shot triplets.
        rank: Rank under the graph constraint.
        rank_ng: The same without the graph constraint.
        rank_pair, rank_pair_ng: The same for pair accuracy.
        rank_phr, rank_phr_ng: The same for phrase detection; all :data:`NO_HIT` if
            ``options.phrase`` is not set.
        has_pairs: Whether the image has a predicted pair.
        num_predicates: Columns of the predicted scores, 0 without pairs.
    """

    predicates: np.ndarray
    zero_shot: np.ndarray
    rank: np.ndarray
    rank_ng: np.ndarray
    rank_pair: np.ndarray
    rank_pair_ng: np.ndarray
    rank_phr: np.ndarray
    rank_phr_ng: np.ndarray
    has_pairs: bool
    num_predicates: int


#: Fields of :class:`ImageMatch` that hold ranks.
RANKS = tuple(name for name in ImageMatch._fields if name.startswith('rank'))


def top_indices(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the ``k`` largest scores, best first; ties go to the lower index.

    Args:
        scores: (M,) without NaN.
        k: Number of indices to return; all if there are fewer scores.

    Returns:
        (min(k, M),) int64, equal to the start of a full stable sort, at lower cost.
    """
    num = scores.shape[0]
    if num <= k:
        return np.argsort(-scores, kind='stable')
    kth = np.partition(scores, num - k)[num - k]
    above = np.flatnonzero(scores > kth)
    equal = np.flatnonzero(scores == kth)[: k - above.size]
    keep = np.sort(np.concatenate((above, equal)))
    return keep[np.argsort(-scores[keep], kind='stable')]


def match_image(
    prediction: Mapping[str, np.ndarray],
    ground_truth: Mapping[str, np.ndarray],
    *,
    max_k: int = 100,
    iou_thr: float = 0.5,
    num_predicates: int | None = None,
    zero_shot_triplets: Container[tuple[int, int, int]] | None = None,
    options: RecallOptions | None = None,
    name: str = 'image',
    iou: np.ndarray | None = None,
) -> ImageMatch:
    """Rank the triplets of one image and find the first hit of each ground-truth relation.

    :func:`~gclip_mm.scene_graph.evaluation.recall.scene_graph_recall` documents the other
    arguments.

    Args:
        max_k: Number of triplets to use.
        options: Options of the recall; None: the defaults.
        name: Name of the image in error messages.
        iou: (N, G) IoU of predicted and true objects, such as that of their masks. None: that of
            their boxes. ``options.phrase`` needs boxes.

    Raises:
        ValueError: An array is missing, has a wrong shape, holds NaN or an index out of range; or
            ``iou`` is given for phrases.
    """
    options = options or RecallOptions()
    arrays = check_graphs(prediction, ground_truth, num_predicates, name)
    boxes, labels, scores, pairs, rel_scores, gt_boxes, gt_labels, relations = arrays
    _check_iou(iou, (len(boxes), len(gt_boxes)), options, name)
    subjects, objects, predicates = relations.T
    triplet_classes = zip(
        gt_labels[subjects].tolist(), gt_labels[objects].tolist(), predicates.tolist(), strict=True
    )
    zero_shot = (
        np.zeros(len(relations), bool)
        if zero_shot_triplets is None
        else np.fromiter((t in zero_shot_triplets for t in triplet_classes), bool, len(relations))
    )
    miss = np.full(len(relations), NO_HIT, np.int32)
    has_pairs, width = len(pairs) > 0, rel_scores.shape[1] if len(pairs) else 0
    if not len(pairs) or not len(relations):
        ranks: dict[str, Any] = dict.fromkeys(RANKS, miss)
        return ImageMatch(predicates, zero_shot, **ranks, has_pairs=has_pairs, num_predicates=width)

    overlap = box_iou(boxes, gt_boxes, options.iou_plus_one) if iou is None else iou
    box_ok = overlap >= iou_thr
    box_ok &= labels[:, None] == gt_labels[None, :]
    pair_scores = scores[pairs[:, 0]] * scores[pairs[:, 1]]

    def boxes_match(rows: np.ndarray) -> np.ndarray:
        return box_ok[pairs[rows, 0]][:, subjects] & box_ok[pairs[rows, 1]][:, objects]

    def unions_match(rows: np.ndarray) -> np.ndarray:
        same = labels[pairs[rows, 0], None] == gt_labels[None, subjects]
        same &= labels[pairs[rows, 1], None] == gt_labels[None, objects]
        unions = pair_unions(boxes, pairs[rows])
        iou = box_iou(unions, pair_unions(gt_boxes, relations), options.iou_plus_one)
        return same & (iou >= iou_thr)

    def first_hits(
        rows: np.ndarray,
        predicted: np.ndarray,
        match: Callable[[np.ndarray], np.ndarray] = boxes_match,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray:
        if not len(rows):
            return miss
        hits = match(rows)
        hits &= predicted[:, None] == predicates[None, :]
        if allowed is not None:
            hits &= allowed[:, None]
        return np.where(hits.any(0), hits.argmax(0), NO_HIT).astype(np.int32)

    best = rel_scores.argmax(axis=1)
    best_scores = pair_scores * rel_scores[np.arange(len(pairs)), best]
    base = max(len(boxes), len(gt_boxes))
    codes = pairs[:, 0] * base + pairs[:, 1]
    annotated = np.isin(codes, subjects * base + objects)

    def constrained(
        rows: np.ndarray,
        match: Callable[[np.ndarray], np.ndarray] = boxes_match,
        allowed: np.ndarray | bool = True,
    ) -> np.ndarray:
        # A pair that is listed twice keeps both ranks, but only the first one can hit.
        first_time = np.zeros(len(rows), bool)
        first_time[np.unique(codes[rows], return_index=True)[1]] = True
        return first_hits(rows, best[rows], match, first_time & allowed)

    candidates, columns = _candidates(rel_scores, options.predicates_per_pair)
    totals = pair_scores[:, None] * candidates

    def unconstrained(among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pair and predicate of the best triplets of these pairs."""
        flat = top_indices(totals[among].ravel(), max_k)
        rows, cols = np.divmod(flat, candidates.shape[1])
        rows = among[rows]
        if options.min_score is not None:
            kept = totals[rows, cols] > options.min_score
            rows, cols = rows[kept], cols[kept]
        return rows, cols if columns is None else columns[rows, cols]

    top = top_indices(best_scores, max_k)
    top_ng = unconstrained(np.arange(len(pairs)))
    if options.pair_accuracy == 'filter':
        gt_rows = np.flatnonzero(annotated)
        rank_pair = constrained(gt_rows[top_indices(best_scores[gt_rows], max_k)])
        rank_pair_ng = first_hits(*unconstrained(gt_rows))
    else:
        rank_pair = constrained(top, allowed=annotated[top])
        rank_pair_ng = first_hits(*top_ng, allowed=annotated[top_ng[0]])
    rank_phr = rank_phr_ng = miss
    if options.phrase:
        rank_phr = constrained(top, unions_match)
        rank_phr_ng = first_hits(*top_ng, unions_match)
    return ImageMatch(
        predicates=predicates,
        zero_shot=zero_shot,
        rank=constrained(top),
        rank_ng=first_hits(*top_ng),
        rank_pair=rank_pair,
        rank_pair_ng=rank_pair_ng,
        rank_phr=rank_phr,
        rank_phr_ng=rank_phr_ng,
        has_pairs=has_pairs,
        num_predicates=width,
    )


class GraphArrays(NamedTuple):
    """Checked prediction (first five) and ground truth of an image, floats as float64."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray
    rel_scores: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    relations: np.ndarray


def check_graphs(
    prediction: Mapping[str, np.ndarray],
    ground_truth: Mapping[str, np.ndarray],
    num_predicates: int | None,
    name: str,
) -> GraphArrays:
    """Check and convert the arrays of an image.

    Raises:
        ValueError: An array is missing, has a wrong shape, holds NaN or an index out of range.
    """
    gt_boxes, gt_labels = _boxes_and_labels(ground_truth, f'{name}: ground_truth')
    relations = _integers(ground_truth, 'relations', 3, f'{name}: ground_truth')
    _check_range(relations[:, :2], len(gt_boxes), f"{name}: ground_truth['relations'][:, :2]")
    _check_range(relations[:, 2], num_predicates, f"{name}: ground_truth['relations'][:, 2]")
    boxes, labels = _boxes_and_labels(prediction, f'{name}: prediction')
    scores = _floats(prediction, 'scores', None, f'{name}: prediction')
    pairs = _integers(prediction, 'pairs', 2, f'{name}: prediction')
    rel_scores = _relation_scores(prediction, len(pairs), num_predicates, f'{name}: prediction')
    if len(scores) != len(boxes):
        raise ValueError(f'{name}: prediction has {len(boxes)} bboxes but {len(scores)} scores')
    _check_range(pairs, len(boxes), f"{name}: prediction['pairs']")
    return GraphArrays(boxes, labels, scores, pairs, rel_scores, gt_boxes, gt_labels, relations)


def _check_iou(
    iou: np.ndarray | None, shape: tuple[int, int], options: RecallOptions, name: str
) -> None:
    if iou is None:
        return
    if options.phrase:
        raise ValueError(f'{name}: phrase=True unites boxes; set phrase=False with iou')
    if iou.shape != shape:
        raise ValueError(f'{name}: iou must have shape {shape}, got {iou.shape}')


def _candidates(
    rel_scores: np.ndarray, per_pair: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (M, k) of the best predicates of each pair, and their labels; None for all."""
    if per_pair is None or per_pair >= rel_scores.shape[1]:
        return rel_scores, None
    order = np.argsort(-rel_scores, axis=1, kind='stable')[:, :per_pair]
    columns = np.sort(order, axis=1)
    return np.take_along_axis(rel_scores, columns, axis=1), columns


def _get(data: Mapping, key: str, where: str) -> Any:
    if key not in data:
        raise ValueError(f'{where} has no {key!r}; it has {sorted(data)}')
    return data[key]


def _shaped(array: np.ndarray, key: str, width: int | None, where: str) -> np.ndarray:
    if array.size == 0:
        return array.reshape((0,) if width is None else (0, width))
    expected = (array.shape[0],) if width is None else (array.shape[0], width)
    if array.ndim == 0 or array.shape != expected:
        want = '(N,)' if width is None else f'(N, {width})'
        raise ValueError(f'{where}[{key!r}] must have shape {want}, got {array.shape}')
    return array


def _floats(data: Mapping, key: str, width: int | None, where: str) -> np.ndarray:
    array = _shaped(np.asarray(_get(data, key, where), np.float64), key, width, where)
    if not np.isfinite(array).all():
        raise ValueError(f'{where}[{key!r}] holds NaN or infinite values')
    return array


def _integers(data: Mapping, key: str, width: int | None, where: str) -> np.ndarray:
    array = _shaped(np.asarray(_get(data, key, where)), key, width, where)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f'{where}[{key!r}] must be integers, got {array.dtype}')
    return array.astype(np.int64)


def _boxes_and_labels(data: Mapping, where: str) -> tuple[np.ndarray, np.ndarray]:
    boxes = _floats(data, 'bboxes', 4, where)
    labels = _integers(data, 'labels', None, where)
    if len(boxes) != len(labels):
        raise ValueError(f'{where} has {len(boxes)} bboxes but {len(labels)} labels')
    return boxes, labels


def _relation_scores(
    data: Mapping, num_pairs: int, num_predicates: int | None, where: str
) -> np.ndarray:
    array = np.asarray(_get(data, 'rel_scores', where), np.float64)
    if not num_pairs and array.size == 0:
        return array.reshape(0, num_predicates or 0)
    if array.ndim != 2 or array.shape[0] != num_pairs or not array.shape[1]:
        raise ValueError(
            f"{where}['rel_scores'] must have shape ({num_pairs}, P), one row for each of the "
            f'{num_pairs} pairs, got {array.shape}'
        )
    if num_predicates is not None and array.shape[1] != num_predicates:
        raise ValueError(
            f"{where}['rel_scores'] has {array.shape[1]} columns but num_predicates is "
            f'{num_predicates} (the background class has no column)'
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{where}['rel_scores'] holds NaN or infinite values")
    return array


def _check_range(array: np.ndarray, stop: int | None, where: str) -> None:
    if array.size and (array.min() < 0 or (stop is not None and array.max() >= stop)):
        limit = 'non-negative' if stop is None else f'in [0, {stop})'
        raise ValueError(f'{where} must be {limit}, got {array.min()}..{array.max()}')
