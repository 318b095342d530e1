"""Builds the graph to draw from predictions and annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from ..boxes import box_iou
from ..segments import scale_masks

#: Kinds of edges and nodes. ``plain``: no annotation to compare with.
KINDS = ('plain', 'true', 'extra', 'missed')


@dataclass
class Node:
    """Object: box (4,) xyxy in pixels of the picture, class name, score or None.

    ``mask`` (H, W) bool has the size of the picture; None if the object has none.
    """

    box: np.ndarray
    name: str
    score: float | None = None
    kind: str = 'plain'
    mask: np.ndarray | None = None


@dataclass
class Edge:
    """Relation between two nodes, given by index, with predicate and score or None."""

    subject: int
    object: int
    predicate: str
    score: float | None = None
    kind: str = 'plain'


@dataclass
class Graph:
    """Nodes, edges, predicted scene (name and score) and annotated scene (name)."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    scene: tuple[str, float] | None = None
    true_scene: str | None = None


@dataclass
class _Arrays:
    """Predicted or annotated graph as NumPy arrays, boxes in pixels of the picture."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    triplets: np.ndarray  # (E, 3): subject, object, predicate
    triplet_scores: np.ndarray | None
    masks: np.ndarray | None = None  # (N, H, W) bool in the size of the picture


def _numpy(value: Any) -> np.ndarray:
    value = getattr(value, 'tensor', value)
    return value.detach().cpu().numpy() if hasattr(value, 'detach') else np.asarray(value)


def _masks(instances: InstanceData, size: tuple[int, int]) -> np.ndarray | None:
    """Masks of all objects, scaled to the picture; None without masks."""
    masks = instances.get('masks')
    if masks is None or not len(masks):
        return None
    array = _numpy(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks)
    return scale_masks(array.astype(bool), size)


def name_of(names: Sequence[str] | None, label: int, kind: str) -> str:
    """Name of a label, or ``kind`` and the label if it has no name."""
    return names[label] if names is not None and label < len(names) else f'{kind} {label}'


def _scale(sample: DetDataSample, key: str, size: tuple[int, int]) -> np.ndarray:
    """(4,) scale from the image size in meta key ``key`` to the picture size."""
    height, width = sample.metainfo.get(key, size)[:2]
    return np.tile([size[1] / width, size[0] / height], 2)


def _annotated(sample: DetDataSample, size: tuple[int, int]) -> _Arrays | None:
    if 'gt_instances' not in sample or 'gt_relations' not in sample:
        return None
    instances, relations = sample.gt_instances, sample.gt_relations
    triplets = np.concatenate([_numpy(relations.pairs), _numpy(relations.labels)[:, None]], axis=1)
    boxes = _numpy(instances.bboxes).reshape(-1, 4) * _scale(sample, 'img_shape', size)
    return _Arrays(
        boxes,
        _numpy(instances.labels),
        None,
        np.unique(triplets, axis=0),
        None,
        _masks(instances, size),
    )


def _predicted(
    sample: DetDataSample,
    size: tuple[int, int],
    score_thr: float,
    edge_score_thr: float,
    max_edges: int,
) -> _Arrays | None:
    if 'pred_instances' not in sample or 'pred_relations' not in sample:
        return None
    instances: InstanceData = sample.pred_instances
    scores = _numpy(instances.scores)
    keep = np.flatnonzero(scores >= score_thr)
    position = np.full(len(scores) + 1, -1)
    position[keep] = np.arange(len(keep))
    pairs = position[_numpy(sample.pred_relations.pairs).reshape(-1, 2)]
    predicates = _numpy(sample.pred_relations.scores)
    shown = np.flatnonzero((pairs >= 0).all(axis=1))
    pairs, predicates = pairs[shown], predicates[shown]
    best = predicates.argmax(axis=1) if len(pairs) else np.zeros(0, np.int64)
    best_score = predicates[np.arange(len(pairs)), best]
    scores = scores[keep]
    rank = best_score * scores[pairs].prod(axis=1)
    order = np.argsort(-rank, kind='stable')
    order = order[best_score[order] >= edge_score_thr][:max_edges]
    boxes = _numpy(instances.bboxes).reshape(-1, 4)[keep] * _scale(sample, 'ori_shape', size)
    masks = _masks(instances, size)
    return _Arrays(
        boxes,
        _numpy(instances.labels)[keep],
        scores,
        np.concatenate([pairs, best[:, None]], axis=1)[order],
        best_score[order],
        None if masks is None else masks[keep],
    )


def build_graph(
    sample: DetDataSample,
    size: tuple[int, int],
    meta: dict,
    *,
    draw_gt: bool = True,
    draw_pred: bool = True,
    score_thr: float = 0.3,
    edge_score_thr: float = 0.2,
    max_edges: int = 15,
    iou_thr: float = 0.5,
) -> Graph:
    """Compare the predictions of a data sample with its annotations.

    A predicted edge is ``true`` if both its objects match annotated objects of the same class with
    an IoU of at least ``iou_thr``, and these have an annotated relation with its predicate. Other
    predicted edges are ``extra``. Annotated edges that are not among the shown ones are
    ``missed``, and so are annotated objects without a match.

    Args:
        sample: Annotations in pixels of the network's input, predictions in pixels of the original
            image.
        size: Height and width of the picture to draw on.
        meta: ``classes``, ``predicates`` and ``scenes`` of the data set.
        draw_gt, draw_pred: Use annotations, predictions.
        score_thr: Minimum score of an object.
        edge_score_thr: Minimum score of a predicate.
        max_edges: Maximum number of predicted edges: those with the highest product of subject,
            object and predicate score.
        iou_thr: Minimum IoU of a predicted and an annotated box of the same object.
    """
    classes, predicates = meta.get('classes'), meta.get('predicates')
    graph = Graph()
    pred = None
    if draw_pred:
        pred = _predicted(sample, size, score_thr, edge_score_thr, max_edges)
        if 'pred_scene' in sample:
            label = int(sample.pred_scene.label)
            probability = float(_numpy(sample.pred_scene.score)[label])
            graph.scene = name_of(meta.get('scenes'), label, 'scene'), probability
    truth = _annotated(sample, size) if draw_gt else None
    if draw_gt and 'gt_scene' in sample:
        graph.true_scene = name_of(meta.get('scenes'), int(sample.gt_scene.label), 'scene')

    side = truth if pred is None else pred
    if side is None:
        return graph
    # Given objects have score 1, which is not informative.
    node_scores = side.scores
    if node_scores is not None and (node_scores == 1).all():
        node_scores = None
    for i, (box, label) in enumerate(zip(side.boxes, side.labels, strict=True)):
        name = name_of(classes, int(label), 'class')
        score = None if node_scores is None else float(node_scores[i])
        mask = None if side.masks is None else side.masks[i]
        graph.nodes.append(Node(box, name, score, mask=mask))
    for i, (subject, object_, predicate) in enumerate(side.triplets.tolist()):
        name = name_of(predicates, predicate, 'predicate')
        score = None if side.triplet_scores is None else float(side.triplet_scores[i])
        graph.edges.append(Edge(subject, object_, name, score))
    if pred is not None and truth is not None:
        _compare(graph, pred, truth, classes, predicates, iou_thr)
    return graph


def _compare(
    graph: Graph,
    pred: _Arrays,
    truth: _Arrays,
    classes: Sequence[str] | None,
    predicates: Sequence[str] | None,
    iou_thr: float,
) -> None:
    """Set the kinds of the edges of ``graph`` and add missed objects and edges, in place."""
    iou = (
        box_iou(pred.boxes, truth.boxes)
        if len(pred.boxes) and len(truth.boxes)
        else np.zeros((len(pred.boxes), len(truth.boxes)))
    )
    same = (iou >= iou_thr) & (pred.labels[:, None] == truth.labels[None])
    annotated = set(map(tuple, truth.triplets.tolist()))
    found: set[tuple[int, int, int]] = set()
    for edge, (subject, object_, predicate) in zip(
        graph.edges, pred.triplets.tolist(), strict=True
    ):
        hits = {
            (s, o, predicate)
            for s in np.flatnonzero(same[subject]).tolist()
            for o in np.flatnonzero(same[object_]).tolist()
        } & annotated
        edge.kind = 'true' if hits else 'extra'
        found |= hits
    # An annotated object is drawn at its best match of the same class, else as a new node.
    node_of = {}
    for g in range(len(truth.boxes)):
        candidates = np.flatnonzero(same[:, g])
        if len(candidates):
            node_of[g] = int(candidates[iou[candidates, g].argmax()])
        else:
            node_of[g] = len(graph.nodes)
            name = name_of(classes, int(truth.labels[g]), 'class')
            mask = None if truth.masks is None else truth.masks[g]
            graph.nodes.append(Node(truth.boxes[g], name, kind='missed', mask=mask))
    for subject, object_, predicate in sorted(annotated - found):
        name = name_of(predicates, predicate, 'predicate')
        graph.edges.append(Edge(node_of[subject], node_of[object_], name, kind='missed'))
