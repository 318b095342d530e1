"""Adaptive average pooling that can be exported."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def average_to(maps: Tensor, size: int) -> Tensor:
    """``adaptive_avg_pool2d`` of maps (M, C, H, W) to (M, C, size, size).

    ONNX has it for sizes only that divide H and W. While a graph is exported the same means are
    computed as products with a matrix for each axis; H and W are constants of the graph.
    """
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_avg_pool2d(maps, size)
    rows, columns = (_means(int(length), size).to(maps) for length in maps.shape[-2:])
    return rows @ maps @ columns.T


def _means(length: int, size: int) -> Tensor:
    """(size, length) matrix whose rows average what each cell of ``adaptive_avg_pool`` covers."""
    matrix = torch.zeros(size, length)
    for cell in range(size):
        start, stop = cell * length // size, -(-(cell + 1) * length // size)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix
