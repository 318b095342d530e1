"""Which pairs of objects a model is trained on, and which it looks at when tested."""

from __future__ import annotations

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


def all_pairs(num_objs: int, device: torch.device) -> Tensor:
    """(n * (n - 1), 2) int64: every ordered pair of two different objects, in ascending order."""
    index = torch.arange(num_objs, device=device)
    pairs = torch.cartesian_prod(index, index).reshape(-1, 2)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def match_objects(
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    num_classes: int,
    iou_thr: float,
) -> tuple[Tensor, Tensor]:
    """The ground-truth object that each box shows.

    Args:
        boxes: (N, 4) xyxy.
        gt_boxes: (G, 4) xyxy.
        gt_labels: (G,) int64.
        num_classes: Label of a box that shows none.
        iou_thr: Least IoU.

    Returns:
        Index of the ground-truth object, -1 for none, and label: both (N,) int64.
    """
    if len(gt_boxes) == 0 or len(boxes) == 0:
        matched = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        return matched, torch.full_like(matched, num_classes)
    iou, matched = bbox_overlaps(boxes, gt_boxes).max(dim=1)
    matched = torch.where(iou >= iou_thr, matched, -1)
    return matched, torch.where(matched >= 0, gt_labels[matched.clamp(min=0)], num_classes)


@TASK_UTILS.register_module()
class PairSampler:
    """Draws the pairs of an image to train on.

    A pair is positive when its two objects match the two ends of a ground-truth relation. Where
    several predicates are annotated for a pair, each call draws one of them. Pairs come out in
    ascending order, so that their order tells nothing about which are positive. Randomness is
    PyTorch's.

    Args:
        num: Most pairs an image.
        pos_fraction: Most positives, as a share of ``num``. As in mmdet's samplers, few negatives
            do not make positives fewer.

    Raises:
        ValueError: ``num`` below 1 or ``pos_fraction`` outside (0, 1].

    Example:
        >>> train_cfg = dict(relation=dict(
        ...     sampler=dict(type='PairSampler', num=256, pos_fraction=0.25)))
    """

    def __init__(self, num: int = 256, pos_fraction: float = 0.25) -> None:
        if num < 1:
            raise ValueError(f'num must be at least 1, got {num}')
        if not 0 < pos_fraction <= 1:
            raise ValueError(f'pos_fraction must be in (0, 1], got {pos_fraction}')
        self.num = num
        self.pos_fraction = pos_fraction

    def sample(
        self, matched: Tensor, gt_pairs: Tensor, gt_predicates: Tensor, num_predicates: int
    ) -> tuple[Tensor, Tensor]:
        """Draw pairs of one image.

        Args:
            matched: (N,) int64, the ground-truth object of each object, -1 for none.
            gt_pairs: (R, 2) int64, relations as indices of ground-truth objects.
            gt_predicates: (R,) int64.
            num_predicates: Label of a pair that has no relation.

        Returns:
            ``pairs`` (M, 2) int64, M <= ``num``, and ``labels`` (M,) int64.
        """
        pairs = all_pairs(len(matched), matched.device)
        labels = self._labels(matched[pairs], gt_pairs, gt_predicates, num_predicates)
        positive = (labels != num_predicates).nonzero().squeeze(1)
        negative = (labels == num_predicates).nonzero().squeeze(1)
        positive = self._draw(positive, max(1, int(self.num * self.pos_fraction)))
        negative = self._draw(negative, self.num - len(positive))
        chosen = torch.cat([positive, negative]).sort().values
        return pairs[chosen], labels[chosen]

    @staticmethod
    def _labels(
        ends: Tensor, gt_pairs: Tensor, gt_predicates: Tensor, num_predicates: int
    ) -> Tensor:
        labels = torch.full((len(ends),), num_predicates, dtype=torch.int64, device=ends.device)
        if len(gt_pairs) == 0 or len(ends) == 0:
            return labels
        hit = (ends[:, None] == gt_pairs[None]).all(dim=2)  # (pairs, relations)
        # The largest of random numbers is a fair draw among the relations of a pair.
        lot = torch.rand(hit.shape, device=hit.device).masked_fill(~hit, -1.0).argmax(dim=1)
        return torch.where(hit.any(dim=1), gt_predicates[lot], labels)

    @staticmethod
    def _draw(candidates: Tensor, most: int) -> Tensor:
        if len(candidates) <= most:
            return candidates
        lot = torch.randperm(len(candidates), device=candidates.device)[:most]
        return candidates[lot]


def candidate_pairs(
    boxes: Tensor, scores: Tensor, max_pairs: int | None = None, require_overlap: bool = False
) -> Tensor:
    """The pairs of an image that a model looks at when tested.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) confidence of the objects.
        max_pairs: Keep this many, those of the highest product of scores. None: all.
        require_overlap: Only pairs whose boxes overlap.

    Returns:
        (M, 2) int64 in ascending order.
    """
    pairs = all_pairs(len(boxes), boxes.device)
    if require_overlap and len(pairs):
        pairs = pairs[bbox_overlaps(boxes, boxes)[pairs[:, 0], pairs[:, 1]] > 0]
    if max_pairs is not None and len(pairs) > max_pairs:
        product = scores[pairs[:, 0]] * scores[pairs[:, 1]]
        best = torch.sort(product, descending=True, stable=True).indices[:max_pairs]
        pairs = pairs[best.sort().values]
    return pairs
