"""Suppression of duplicate objects after a context has refined their labels."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from torch import Tensor


def refined_nms(boxes: Tensor, probs: Tensor, iou_thr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Per-class NMS on refined class probabilities; each box keeps its best surviving class.

    After Zellers et al., arXiv 1711.06640: a refined label may make two boxes of one object the
    same class, which the detector's own NMS could not know.

    Args:
        boxes: (N, 4) xyxy.
        probs: (N, C) refined probabilities without background.
        iou_thr: Boxes of the same class that overlap more are duplicates.

    Returns:
        ``keep`` (K,) int64 ascending, the boxes that survive in some class; ``labels`` and
        ``scores`` (K,) of these.
    """
    num_boxes, num_classes = probs.shape
    if num_boxes == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return empty, empty, probs.new_zeros(0)
    # A class that a box is hardly thought to be cannot be its label, nor suppress another's.
    candidate = probs >= 0.1 * probs.max(dim=1, keepdim=True).values
    row, label = candidate.nonzero(as_tuple=True)
    _, kept = batched_nms(
        boxes[row].float(),
        probs[row, label].float(),
        label,
        dict(type='nms', iou_threshold=iou_thr),
    )
    surviving = torch.zeros_like(probs)
    surviving[row[kept], label[kept]] = probs[row[kept], label[kept]]
    scores, labels = surviving.max(dim=1)
    keep = (scores > 0).nonzero().squeeze(1)
    return keep, labels[keep], scores[keep]
