"""Relation counts of a scene-graph data set, for the frequency bias and zero-shot triplets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..boxes import box_iou

if TYPE_CHECKING:
    from .scene_graph_dataset import SceneGraphDataset


@dataclass(frozen=True)
class RelationStatistics:
    """Relation counts by class pair.

    Attributes:
        relations: (C, C, P) int64, ground-truth relations by subject class, object class and
            predicate.
        unrelated: (C, C) int64, ordered pairs of boxes of one image that have no relation.
    """

    relations: np.ndarray
    unrelated: np.ndarray

    def triplets(self) -> set[tuple[int, int, int]]:
        """The (subject class, object class, predicate) triplets that occur."""
        return {(s, o, p) for s, o, p in np.argwhere(self.relations).tolist()}


def relation_statistics(
    dataset: SceneGraphDataset, only_overlapping: bool = True
) -> RelationStatistics:
    """Count the relations, and the pairs without one, in a data set's annotations.

    Ignored (crowd) boxes and their relations are not counted.

    Args:
        dataset: A :class:`SceneGraphDataset`, or a wrapper with ``get_data_info``.
        only_overlapping: Count as ``unrelated`` only pairs whose boxes overlap, in images that
            have such pairs, as Neural Motifs (arXiv 1711.06640) does for its frequency bias.

    Returns:
        Counts. The log-frequency of predicate p given classes (s, o) is
        ``log(relations[s, o, p] / (relations[s, o].sum() + unrelated[s, o]))``.
    """
    metainfo = dataset.metainfo
    num_classes, num_predicates = len(metainfo['classes']), len(metainfo['predicates'])
    relations = np.zeros((num_classes, num_classes, num_predicates), np.int64)
    unrelated = np.zeros((num_classes, num_classes), np.int64)
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        instances = [x for x in info['instances'] if not x['ignore_flag']]
        if not instances:
            continue
        labels = np.array([x['bbox_label'] for x in instances])
        position = {x['ann_id']: n for n, x in enumerate(instances)}
        candidates = ~np.eye(len(labels), dtype=bool)
        if only_overlapping:
            boxes = np.array([x['bbox'] for x in instances], np.float64)
            overlapping = candidates & (box_iou(boxes, boxes) > 0)
            candidates = overlapping if overlapping.any() else candidates
        for subject, object_, predicate in np.asarray(info['relations']).tolist():
            if subject in position and object_ in position:
                s, o = position[subject], position[object_]
                relations[labels[s], labels[o], predicate] += 1
                candidates[s, o] = False
        subjects, objects = np.nonzero(candidates)
        np.add.at(unrelated, (labels[subjects], labels[objects]), 1)
    return RelationStatistics(relations, unrelated)


def zero_shot_triplets(
    train: RelationStatistics, test: RelationStatistics
) -> set[tuple[int, int, int]]:
    """Triplets that occur in the test data but not in the training data.

    Returns:
        A set of (subject class, object class, predicate), the ``zero_shot_triplets`` of
        :func:`~gclip_mm.scene_graph.evaluation.scene_graph_recall`.
    """
    return test.triplets() - train.triplets()
