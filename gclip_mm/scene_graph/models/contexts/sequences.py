"""Orders the objects of each image and converts rows to padded sequences and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ORDERINGS = ('left_right', 'confidence', 'size')


def image_index(num_objs: Sequence[int], device: torch.device) -> Tensor:
    """Index of the image of each object, (N,) int64."""
    counts = torch.as_tensor(list(num_objs), device=device, dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(counts), device=device), counts)


def order_objects(boxes: Tensor, num_objs: Sequence[int], ordering: str) -> Tensor:
    """Sort the objects within each image.

    Args:
        boxes: (N, 5) x1, y1, x2, y2, confidence.
        num_objs: Number of objects of each image.
        ordering: ``'left_right'`` by x of the centre, ``'confidence'`` with the highest first, or
            ``'size'`` with the largest area first. Ties are broken from left to right, then from
            top to bottom.

    Returns:
        (N,) int64, row indices of ``boxes``, image by image.
    """
    left_right = (boxes[:, 0] + boxes[:, 2]) / 2
    keys = [(boxes[:, 1] + boxes[:, 3]) / 2, left_right]
    if ordering == 'confidence':
        keys.append(-boxes[:, 4])
    elif ordering == 'size':
        keys.append(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    keys.append(image_index(num_objs, boxes.device))
    order = torch.arange(len(boxes), device=boxes.device)
    for key in keys:  # stable sorts: the last key has the highest priority
        order = order[torch.sort(key[order], stable=True).indices]
    return order


class Padding:
    """Converts grouped rows to padded sequences (sequences, longest, ...) and back.

    Args:
        group: (N,) int64 ascending, the sequence of each row.

    Attributes:
        lengths: (G,) int64, lengths of the sequences that are not empty.
        mask: (G, L) bool, True for rows, False for padding.
    """

    def __init__(self, group: Tensor) -> None:
        self.groups, self._sequence, self.lengths = torch.unique_consecutive(
            group, return_inverse=True, return_counts=True
        )
        starts = self.lengths.cumsum(0) - self.lengths
        self._place = torch.arange(len(group), device=group.device) - starts[self._sequence]
        longest = int(self.lengths.max()) if len(group) else 0
        self.mask = torch.arange(longest, device=group.device) < self.lengths[:, None]

    def pad(self, rows: Tensor) -> Tensor:
        """Convert (N, D) to (G, L, D), padded with zeros."""
        padded = rows.new_zeros(*self.mask.shape, *rows.shape[1:])
        return padded.index_put((self._sequence, self._place), rows)

    def unpad(self, padded: Tensor) -> Tensor:
        """Convert (G, L, D) to (N, D)."""
        return padded[self._sequence, self._place]
