"""Samples among the predicates of a pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from .boxes import SceneGraphBoxes


@TRANSFORMS.register_module()
class SamplePredicatePerPair(BaseTransform):
    """Keep one randomly drawn relation of each (subject, object) pair.

    Neural Motifs (arXiv 1711.06640) and most later code train this way on pairs with several
    annotations. A predicate that is annotated more often is drawn more often. Without this
    transform, training uses all relations of a pair.

    Required key: ``gt_bboxes``, loaded by ``LoadSceneGraphAnnotations``.

    Raises:
        RuntimeError: The boxes have no relations.

    Example:
        >>> train_pipeline = [
        ...     dict(type='LoadImageFromFile'),
        ...     dict(type='LoadSceneGraphAnnotations'),
        ...     dict(type='SamplePredicatePerPair'),
        ...     dict(type='PackSceneGraphInputs')]
    """

    def transform(self, results: dict) -> dict:
        """Replace the graph of ``results['gt_bboxes']``."""
        boxes = results.get('gt_bboxes')
        if not isinstance(boxes, SceneGraphBoxes) or boxes.graph is None:
            raise RuntimeError('SamplePredicatePerPair needs LoadSceneGraphAnnotations before it')
        triplets = boxes.graph.triplets
        order = np.random.permutation(len(triplets))
        # The first relation of a pair in random order is a uniform draw among the pair's relations.
        _, first = np.unique(triplets[order, :2], axis=0, return_index=True)
        boxes.graph = replace(boxes.graph, triplets=triplets[np.sort(order[first])])
        return results
