"""Matches the queries of a DETR to objects, and measures how well they match."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.task_modules.assigners import (
    BBoxL1Cost,
    ClassificationCost,
    FocalLossCost,
    IoUCost,
)
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

#: Probability of a wrong class at which the published code bounds the focal cost.
_MIN_PROB = 1e-8


class QueryMatch(NamedTuple):
    """Queries of an image that are matched to an object.

    Attributes:
        queries: (G,) int64, index of each such query.
        position: (N,) int64, for each ground-truth object its row in ``queries``; -1 without one.
        excess: (G,) cost of the match, above that of a perfect one.
    """

    queries: Tensor
    position: Tensor
    excess: Tensor


def lowest_cost(match_costs: Sequence[Any]) -> float:
    """The cost of a perfect match: the right class with probability 1, and the same box.

    Raises:
        ValueError: A cost is of another kind than those of DETR, DeformableDETR and DINO.
    """
    total = 0.0
    for cost in match_costs:
        if type(cost) is FocalLossCost:
            total += cost.weight * (1 - cost.alpha) * math.log(_MIN_PROB)
        elif type(cost) in (ClassificationCost, IoUCost):
            total -= cost.weight
        elif type(cost) is not BBoxL1Cost:
            raise ValueError(
                f'detector.train_cfg.assigner.match_costs: the lowest value of a '
                f'{type(cost).__name__} is not known; valid: FocalLossCost, ClassificationCost, '
                'BBoxL1Cost, IoUCost'
            )
    return total


@torch.no_grad()
def match_queries(
    match_costs: Sequence[Any], logits: Tensor, boxes: Tensor, truth: InstanceData, meta: dict
) -> QueryMatch:
    """Match queries and objects one to one, at the lowest total cost.

    Args:
        match_costs: Those of the detector's ``HungarianAssigner``.
        logits: (Q, C) class logits of the queries, as the costs take them.
        boxes: (Q, 4) xyxy in pixels of the network's input.
        truth: ``bboxes`` (G, 4) and ``labels`` (G,).
        meta: With ``img_shape``.
    """
    position = torch.full((len(truth),), -1, dtype=torch.int64, device=logits.device)
    if not len(truth):
        return QueryMatch(position, position, logits.new_zeros(0))
    found = InstanceData(scores=logits, bboxes=boxes)
    costs = [c(pred_instances=found, gt_instances=truth, img_meta=meta) for c in match_costs]
    cost = torch.stack(costs).sum(dim=0)
    rows, columns = linear_sum_assignment(cost.cpu())
    queries = torch.as_tensor(rows, device=cost.device)
    objects = torch.as_tensor(columns, device=cost.device)
    position[objects] = torch.arange(len(objects), device=cost.device)
    return QueryMatch(queries, position, cost[queries, objects] - lowest_cost(match_costs))


def match_quality(excess: Tensor, smoothing: float | None) -> Tensor:
    """Adaptive smoothing: how sure a match is, (G,) in [0, 1].

    One minus the sigmoid of the excess cost, shifted so that a perfect match has
    ``1 - smoothing``. None: 1.
    """
    if smoothing is None:
        return torch.ones_like(excess)
    return 1 - (excess - math.log(1 / smoothing - 1)).sigmoid()
