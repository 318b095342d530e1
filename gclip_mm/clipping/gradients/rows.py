"""The 2-norms of large CPU tensors by way of the norms of their rows.

torch computes the norm of a whole tensor on one core, in one chain of additions. The rows of a
matrix it shares out among all cores, so that a large tensor cut into short rows is read as fast as
the memory allows, and the sum is the more accurate for being taken in two stages. No element is
larger than the norm of its row, which also tells a rule that looks at single elements where it need
not look.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Elements in a row: as fast as it goes, for who wants the norms of whole tensors only.
WIDE = 1 << 12
#: For who wants to know where large elements may be. The norms of such rows take 0.4% of the
#: gradients' memory.
NARROW = 1 << 8
#: Tensors of fewer elements are faster in one piece.
_LARGE = 1 << 16


class RowNorms:
    """The norms of some tensors, and those of the rows of the large ones among them.

    Made by :func:`row_norms`. It holds no reference to the tensors.

    Attributes:
        parts: N tensors whose 2-norms are those of the N tensors: the norms of a tensor's rows,
            the last of which may be shorter than the others, or None for a tensor without.
        flat: (R,) float32, the norms of all rows one after another: the memory of ``parts``.
        places: which of the N tensors have rows, in the order in which they lie in ``flat``.
        width: elements in a row.
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
        """The 2-norm of each tensor, 0-d, as far as it has rows from what is in ``flat``."""
        pairs = zip(tensors, self.parts, strict=True)
        return torch._foreach_norm([tensor if part is None else part for tensor, part in pairs])


def row_norms(tensors: list[Tensor], width: int = WIDE) -> RowNorms | None:
    """Read the rows of all large tensors; None where there are none or it would be no faster.

    Args:
        tensors: N tensors of one type on one device.
        width: elements in a row.
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
    """The elements of a tensor (n,) in the order in which they lie in memory, as a view.

    None where they do not lie side by side.
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    # Transposed, channels last: contiguous with the axes in another order.
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    if tensor.permute(order).is_contiguous():
        return tensor.as_strided((tensor.numel(),), (1,))
    return None
