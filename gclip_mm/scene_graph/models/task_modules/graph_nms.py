"""Suppression of duplicate objects after label refinement."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from torch import Tensor


def refined_nms(boxes: Tensor, probs: Tensor, iou_thr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Per-class NMS on refined class probabilities; each box keeps its best surviving class.

    Refinement may assign the same class to two boxes of one object, which the detector's NMS did
    not suppress (Zellers et al., arXiv 1711.06640).

    Args:
        boxes: (N, 4) xyxy.
        probs: (N, C) refined probabilities without background.
        iou_thr: Boxes of the same class with a higher IoU are duplicates.

    Returns:
        ``keep`` (K,) int64 ascending, indices of the boxes that survive in some class; ``labels``
        and ``scores`` (K,) of these boxes.
    """
    num_boxes = probs.shape[0]
    if num_boxes == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return empty, empty, probs.new_zeros(0)
    # An improbable class can neither become a box's label nor suppress other boxes.
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
