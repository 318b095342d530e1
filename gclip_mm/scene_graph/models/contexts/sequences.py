"""Orders the objects of each image and converts rows to padded sequences and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ORDERINGS = ('left_right', 'confidence', 'size')


def image_index(num_objs: Sequence[int], device: torch.device) -> Tensor:
    """Index of the image of each object, (N,) int64."""
    if len(num_objs) == 1:  # no tensor of the number: an exported graph keeps it variable
        return torch.zeros(num_objs[0], device=device, dtype=torch.int64)
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
    order = torch.arange(boxes.shape[0], device=boxes.device)
    for key in keys:  # stable sorts: the last key has the highest priority
        order = order[stable_order(key[order])]
    return order


def stable_order(keys: Tensor) -> Tensor:
    """(N,) int64, the rows in ascending order of ``keys`` (N,); equal keys keep their order."""
    if torch.onnx.is_in_onnx_export():
        return keys.argsort()  # ONNX has no other sort; its TopK puts the lower row first
    return torch.sort(keys, stable=True).indices


def sum_by(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """(count, D): the sum of the rows (M, D) of each index (M,) int64."""
    if torch.onnx.is_in_onnx_export():
        # As exported, index_add gave other sums where an index occurs several times.
        return _members(index, count).to(rows) @ rows
    return rows.new_zeros(count, rows.shape[1]).index_add(0, index, rows)


def count_by(index: Tensor, count: int) -> Tensor:
    """(count,) int64: how often each index occurs in ``index`` (M,) int64."""
    if torch.onnx.is_in_onnx_export():
        return _members(index, count).sum(dim=1)
    return torch.bincount(index, minlength=count)


def _members(index: Tensor, count: int) -> Tensor:
    """(count, M) bool: where ``index`` has each number."""
    return torch.arange(count, device=index.device)[:, None] == index[None]


class Padding:
    """Converts grouped rows to padded sequences (sequences, longest, ...) and back.

    Args:
        group: (N,) int64 ascending, the sequence of each row.

    Attributes:
        lengths: (G,) int64, lengths of the sequences that are not empty.
        mask: (G, L) bool, True for rows, False for padding.
    """

    _single = False

    def __init__(self, group: Tensor) -> None:
        if torch.onnx.is_in_onnx_export():
            self._trace(group)
            return
        _, self._sequence, self.lengths = torch.unique_consecutive(
            group, return_inverse=True, return_counts=True
        )
        starts = self.lengths.cumsum(0) - self.lengths
        self._place = torch.arange(len(group), device=group.device) - starts[self._sequence]
        longest = int(self.lengths.max()) if len(group) else 0
        self.mask = torch.arange(longest, device=group.device) < self.lengths[:, None]

    def _trace(self, group: Tensor) -> None:
        """The same for a tracer: no Python number depends on the rows, and ONNX has every operator.

        A single sequence is not padded. Otherwise there is one for each number up to the last one
        of ``group``, also without rows. Its length is 1 then, because recurrent layers refuse 0;
        nothing reads its only state.
        """
        self._single = not bool(group.any())  # the same in every run of the graph: one image
        if self._single:
            self.mask = (group == 0)[None]
            self.lengths = self.mask.sum(dim=1)
            return
        last: Any = torch.cat([group, group.new_zeros(1)]).max()  # without pairs there is no row
        every = torch.arange(last + 1, device=group.device)
        counts = (every[:, None] == group[None]).sum(dim=1)
        starts = counts.cumsum(0) - counts
        self._sequence = group
        self._place = torch.arange(group.shape[0], device=group.device) - starts[group]
        longest: Any = counts.max().clamp(min=1)  # a tensor for the tracer
        self.mask = torch.arange(longest, device=group.device)[None] < counts[:, None]
        self.lengths = counts.clamp(min=1)

    def pad(self, rows: Tensor) -> Tensor:
        """Convert (N, D) to (G, L, D), padded with zeros."""
        if self._single:
            return rows[None]
        padded = rows.new_zeros(*self.mask.shape, *rows.shape[1:])
        return padded.index_put((self._sequence, self._place), rows)

    def unpad(self, padded: Tensor) -> Tensor:
        """Convert (G, L, D) to (N, D)."""
        if self._single:
            return padded[0]
        return padded[self._sequence, self._place]
