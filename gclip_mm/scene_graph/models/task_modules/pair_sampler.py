"""Selects the pairs of objects for training and testing."""

from __future__ import annotations

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


def all_pairs(num_objs: int, device: torch.device) -> Tensor:
    """All ordered pairs of distinct objects, (n * (n - 1), 2) int64, in ascending order."""
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
    """Match each box to the ground-truth object with the highest IoU.

    Args:
        boxes: (N, 4) xyxy.
        gt_boxes: (G, 4) xyxy.
        gt_labels: (G,) int64.
        num_classes: Label of an unmatched box.
        iou_thr: Minimum IoU.

    Returns:
        Index of the ground-truth object (-1 for none) and label, both (N,) int64.
    """
    if len(gt_boxes) == 0 or len(boxes) == 0:
        matched = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        return matched, torch.full_like(matched, num_classes)
    iou, matched = bbox_overlaps(boxes, gt_boxes).max(dim=1)
    matched = torch.where(iou >= iou_thr, matched, -1)
    return matched, torch.where(matched >= 0, gt_labels[matched.clamp(min=0)], num_classes)


@TASK_UTILS.register_module()
class PairSampler:
    """Samples the training pairs of an image.

    A pair is positive if its objects match subject and object of a ground-truth relation. If a pair
    has several annotated predicates, each call draws one of them. A pair whose relations all have a
    negative label (dropped by ``PredicateResampling``) is not sampled. Pairs are returned in
    ascending order, so that their order does not reveal the positives. The sampler uses PyTorch's
    global random generator.

    Args:
        num: Maximum number of pairs of an image.
        pos_fraction: Maximum number of positives, as a share of ``num``. As in mmdet's samplers, a
            lack of negatives does not reduce the number of positives.

    Raises:
        ValueError: ``num`` is below 1, or ``pos_fraction`` is outside (0, 1].

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
        """Sample pairs of one image.

        Args:
            matched: (N,) int64, ground-truth index of each object, -1 for none.
            gt_pairs: (R, 2) int64, relations as indices of ground-truth objects.
            gt_predicates: (R,) int64; negative: ignored.
            num_predicates: Label of a pair without a relation.

        Returns:
            ``pairs`` (M, 2) int64, M <= ``num``, and ``labels`` (M,) int64.
        """
        pairs = all_pairs(len(matched), matched.device)
        labels = self._labels(matched[pairs], gt_pairs, gt_predicates, num_predicates)
        positive = ((labels != num_predicates) & (labels >= 0)).nonzero().squeeze(1)
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
        # The argmax of random numbers is a uniform draw among the relations of a pair.
        lot = torch.rand(hit.shape, device=hit.device) + (gt_predicates >= 0)  # ignored ones last
        lot = lot.masked_fill(~hit, -1.0).argmax(dim=1)
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
    """Pairs of an image to evaluate at test time.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,) confidence of the objects.
        max_pairs: Maximum number of pairs: those with the highest product of scores. None: all.
        require_overlap: Use only pairs whose boxes overlap.

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
