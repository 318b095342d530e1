"""Class probabilities from detections that have one label and one score each."""

from __future__ import annotations

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

# Share of a detection's score that the other classes get. Refinement adds to log-probabilities, so
# a class of probability 0 could not become the label.
_OTHERS = 0.1
# A given box has the label of detections that overlap it this much.
_MIN_IOU = 0.5


def predicted_probs(found: InstanceData, num_classes: int) -> Tensor:
    """Probabilities of detections: the score on the label, the remainder on the background.

    Args:
        found: ``labels`` (n,) int64 and ``scores`` (n,) in [0, 1].
        num_classes: Object classes C.

    Returns:
        (n, C + 1), background last. The label is the most probable class, and a tenth of its score
        is divided among the others.
    """
    foreground = _spread(found.labels, found.scores, _OTHERS * found.scores, num_classes)
    return torch.cat([foreground, (1 - found.scores)[:, None]], dim=1)


def given_probs(boxes: Tensor, found: InstanceData, num_classes: int) -> Tensor:
    """Probabilities of given boxes, which are never background.

    A box gets label and score of the detection with the highest score among those that overlap it
    by an IoU of at least 0.5. The remainder, which is everything for a box without a detection, is
    divided evenly among the classes.

    Args:
        boxes: (n, 4) xyxy.
        found: ``bboxes`` (m, 4), ``labels`` (m,) int64 and ``scores`` (m,), best first.
        num_classes: Object classes C.

    Returns:
        (n, C + 1), background last.
    """
    labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    scores = torch.zeros(len(boxes), dtype=torch.float32, device=boxes.device)
    if len(boxes) and len(found):
        on_box = bbox_overlaps(boxes.float(), found.bboxes) >= _MIN_IOU
        # Detections are sorted, and argmax returns the first of equal values.
        best = on_box.int().argmax(dim=1)
        labels = found.labels[best]
        scores = torch.where(on_box.any(dim=1), found.scores[best], scores)
    kept = (1 - _OTHERS) * scores
    foreground = _spread(labels, torch.ones_like(scores), 1 - kept, num_classes)
    return torch.cat([foreground, torch.zeros_like(scores)[:, None]], dim=1)


def _spread(labels: Tensor, total: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """Put ``total`` on each row: ``others`` of it evenly on all classes, the rest on the label."""
    probs = (others / num_classes)[:, None].repeat(1, num_classes)
    return probs.scatter_add(1, labels[:, None], (total - others)[:, None])
