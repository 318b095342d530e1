"""The 2-norms of large CPU tensors, computed from the norms of their rows.

torch computes the norm of a whole tensor on one core, in one chain of additions. It distributes the
rows of a matrix over all cores. A large tensor that is split into short rows is therefore read at
memory speed, and the sum in two stages is more accurate. No element is larger than the norm of its
row, so a rule on single elements can skip rows with a small norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Elements of a row: the fastest size, for the norms of whole tensors only.
WIDE = 1 << 12
#: Elements of a row, to find out where large elements may be. The norms of these rows take 0.4% of
#: the gradients' memory.
NARROW = 1 << 8
#: Tensors of fewer elements are faster without rows.
_LARGE = 1 << 16


class RowNorms:
    """The row norms of the large tensors among some tensors.

    Made by :func:`row_norms`. It holds no reference to the tensors.

    Attributes:
        parts: for each of the N tensors the norms of its rows, whose 2-norm is that of the tensor;
            None for a tensor without rows. The last row may be shorter than the others.
        flat: (R,) float32, the norms of all rows, concatenated; ``parts`` are views of it.
        places: the indices of the tensors that have rows, in their order in ``flat``.
        width: elements of a row.
    """

    def __init__(self, sizes: dict[int, int], count: int, width: int) -> None:
        self.width = width
        rows = [-(-size // width) for size in sizes.values()]
        self.places = list(sizes)
        self.flat = torch.empty(sum(rows))
        self.parts: list[Tensor | None] = [None] * count
        parts = self.flat.split(rows)  # type: ignore[no-untyped-call]
        for place, part in zip(sizes, parts, strict=True):
            self.parts[place] = part

    def rows_of(self, i: int) -> Tensor:
        """The norms of the rows of a tensor that has rows."""
        rows = self.parts[i]
        assert rows is not None
        return rows

    def norms(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        """The 2-norm of each tensor, 0-d; for a tensor with rows, computed from ``flat``."""
        pairs = zip(tensors, self.parts, strict=True)
        return torch._foreach_norm([tensor if part is None else part for tensor, part in pairs])


def row_norms(tensors: list[Tensor], width: int = WIDE) -> RowNorms | None:
    """Compute the norms of the rows of all large tensors; None if that is not faster.

    Args:
        tensors: N tensors of one dtype on one device.
        width: elements of a row.
    """
    if tensors[0].dtype != torch.float32 or tensors[0].device.type != 'cpu':
        return None
    memory = {
        i: line
        for i, tensor in enumerate(tensors)
        if tensor.numel() >= _LARGE and (line := in_line(tensor)) is not None
    }
    if not memory:
        return None
    norms = RowNorms({i: line.numel() for i, line in memory.items()}, len(tensors), width)
    for i, line in memory.items():
        read_rows(line, norms.rows_of(i), width)
    return norms


def read_rows(line: Tensor, out: Tensor, width: int) -> None:
    """Write the norms of the rows of a tensor (n,) to ``out`` (ceil(n / width),)."""
    full = line.numel() // width
    if line.numel() == full * width:
        torch.linalg.vector_norm(line.view(full, width), dim=1, out=out)
        return
    if full:
        torch.linalg.vector_norm(line[: full * width].view(full, width), dim=1, out=out[:full])
    torch.linalg.vector_norm(line[full * width :], out=out[full])


def in_line(tensor: Tensor) -> Tensor | None:
    """A view (n,) of the elements of a tensor in memory order; None if there are gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    # Transposed, channels last: contiguous with the axes in another order.
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    if tensor.permute(order).is_contiguous():
        return tensor.as_strided((tensor.numel(),), (1,))
    return None
