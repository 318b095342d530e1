"""Geometry features of boxes and of pairs of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

BOX_GEOMETRY_DIM = 8
PAIR_GEOMETRY_DIM = 9
_MIN_SIDE = 1e-3  # pixels; keeps the logarithm of an empty box finite


def union_boxes(boxes: Tensor, pairs: Tensor) -> Tensor:
    """Smallest box that contains both boxes of each pair: (N, 4), (M, 2) to (M, 4) xyxy."""
    subject, object_ = boxes[pairs[:, 0], :4], boxes[pairs[:, 1], :4]
    return torch.cat(
        [torch.min(subject[:, :2], object_[:, :2]), torch.max(subject[:, 2:], object_[:, 2:])], 1
    )


def box_geometry(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Position and size of each box relative to its image.

    Args:
        boxes: (N, 4 or more) xyxy in pixels.
        image_sizes: (N, 2) height and width of the image of each box.

    Returns:
        (N, 8): corners, centre, width and height, relative to the image's width and height.
    """
    height, width = image_sizes.unbind(1)
    x1, y1, x2, y2 = boxes[:, :4].unbind(1)
    x1, x2, y1, y2 = x1 / width, x2 / width, y1 / height, y2 / height
    return torch.stack([x1, y1, x2, y2, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)


def pair_geometry(boxes: Tensor, pairs: Tensor) -> Tensor:
    """Relative position and size of the boxes of each pair.

    Args:
        boxes: (N, 4 or more) xyxy in pixels.
        pairs: (M, 2) int64.

    Returns:
        (M, 9): centre offset in units of the mean box side; log(1 + its length); log ratios of
        widths, heights and areas; intersection over union, over the subject's area and over the
        object's area.
    """
    subject, object_ = boxes[pairs[:, 0], :4], boxes[pairs[:, 1], :4]
    s_size = (subject[:, 2:] - subject[:, :2]).clamp(min=_MIN_SIDE)
    o_size = (object_[:, 2:] - object_[:, :2]).clamp(min=_MIN_SIDE)
    s_area, o_area = s_size.prod(1), o_size.prod(1)
    offset = (object_[:, :2] + object_[:, 2:] - subject[:, :2] - subject[:, 2:]) / 2
    offset = offset / ((s_area.sqrt() + o_area.sqrt()) / 2)[:, None]
    common = torch.min(subject[:, 2:], object_[:, 2:]) - torch.max(subject[:, :2], object_[:, :2])
    inter = common.clamp(min=0).prod(1)
    return torch.cat(
        [
            offset,
            torch.log1p(offset.norm(dim=1, keepdim=True)),
            torch.log(s_size / o_size),
            torch.log(s_area / o_area)[:, None],
            torch.stack([inter / (s_area + o_area - inter), inter / s_area, inter / o_area], dim=1),
        ],
        dim=1,
    )


def pair_masks(boxes: Tensor, pairs: Tensor, size: int) -> Tensor:
    """Masks of both boxes of each pair, in the frame of their union box.

    Args:
        boxes: (N, 4 or more) xyxy in pixels.
        pairs: (M, 2) int64.
        size: Height and width of the masks.

    Returns:
        (M, 2, size, size): share of each cell that is covered by the subject's box (channel 0)
        and by the object's box (channel 1).
    """
    union = union_boxes(boxes, pairs)
    side = (union[:, 2:] - union[:, :2]).clamp(min=_MIN_SIDE)
    masks = []
    edges = torch.arange(size, device=boxes.device, dtype=union.dtype)
    for end in (0, 1):
        box = boxes[pairs[:, end], :4]
        low = (box[:, :2] - union[:, :2]) / side * size
        high = (box[:, 2:] - union[:, :2]) / side * size
        covered = [
            (torch.min(high[:, a, None], edges + 1) - torch.max(low[:, a, None], edges)).clamp(0, 1)
            for a in (0, 1)
        ]
        masks.append(covered[1][:, :, None] * covered[0][:, None, :])
    return torch.stack(masks, dim=1)
