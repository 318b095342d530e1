"""Changes the elements that lie outside a range with as little memory traffic as possible.

The cost of such a rule is its passes over memory. On a CPU, where the host can read values, tensors
and rows whose norm is within the range are skipped: no element is larger than the norm of its row.
The rest is processed in pieces that stay in a core's cache through several operations, and only
pieces with an element outside are written. On other devices nothing is read on the host, and all
elements go through the same operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...compat import aminmax, foreach_copy_
from ..host import host, np
from .norms import finish_norms, tensor_norms
from .pieces import chunk_size, pieces
from .rows import RowNorms, in_line, read_rows

#: ``change(values, out)`` writes the changed values to ``out``; both have the same shape.
Change = Callable[[Tensor, Tensor], object]

#: Below this the square of an element, and with it the norm of its row, may underflow.
_SMALLEST = 1e-15
#: Norms are rounded: a norm below this share of a bound is certainly within the bound.
_MARGIN = 0.99
#: Above this share of rows it is faster to process the whole tensor.
_MANY = 0.25
#: Gradients of fewer elements are processed together: a call costs more than the work on them.
_SMALL = 1 << 14


class OutlierEdit:
    """Changes elements outside a range, counts them, and updates the norms.

    Args:
        grads: the N gradients that are changed in place.
        norms: (N,) their 2-norms; for a sharded gradient, the norm of the whole tensor.
        rows: the norms of their rows, if they have been read; updated in place.
    """

    def __init__(self, grads: list[Tensor], norms: Tensor, rows: RowNorms | None) -> None:
        self._grads = grads
        self._norms = norms
        self._rows = rows
        self._known = host(norms)
        self._changed: list[int] = []
        #: (N,) float64, number of changed elements of each gradient.
        self.counts = norms.new_zeros(len(grads), dtype=torch.float64)
        self._scratch: Tensor | None = None
        self._range_of: tuple[float | None, float | None, torch.dtype] | None = None

    def apply(self, i: int, low: float | None, high: float | None, change: Change) -> None:
        """Change the elements of gradient ``i`` that are below ``low`` or above ``high``."""
        if self._known is None:
            self._change_unseen(i, change)
            return
        inner = _inner(low, high)
        if self._known[i] <= _MARGIN * inner:
            return
        self._change = change
        self._set_range(low, high, self._grads[i].dtype)
        self._apply(i, inner)

    def apply_to_all(self, low: float | None, high: float | None, change: Change) -> None:
        """:meth:`apply` to every gradient, with one range; small gradients share a call."""
        if self._known is None:
            for i in range(len(self._grads)):
                self._change_unseen(i, change)
            return
        self._change = change
        inner = _inner(low, high)
        largest = self._known
        if self._rows is not None and inner >= _SMALLEST:
            largest = largest.copy()
            largest[self._rows.places] = _largest_rows(self._rows)
        together: dict[torch.dtype, list[int]] = {}
        for i in np.flatnonzero(~(largest <= _MARGIN * inner)).tolist():
            grad = self._grads[i]
            has_rows = self._rows is not None and self._rows.parts[i] is not None
            if not has_rows and 0 < grad.numel() < _SMALL:
                together.setdefault(grad.dtype, []).append(i)
            else:
                self._set_range(low, high, grad.dtype)
                self._apply(i, inner)
        for dtype, indices in together.items():
            self._set_range(low, high, dtype)
            for group in self._groups(indices):
                self._edit_together(group)

    def _change_unseen(self, i: int, change: Change) -> None:
        for (piece,) in pieces(self._grads[i]):
            new = torch.empty_like(piece)
            change(piece, new)
            self.counts[i] += (new != piece).sum()
            piece.copy_(new)

    def _set_range(self, low: float | None, high: float | None, dtype: torch.dtype) -> None:
        if (low, high, dtype) != self._range_of:
            self._range_of = low, high, dtype
            # Rounded to the dtype of the gradient, because elements are compared in that dtype.
            self._low, self._high = (
                torch.tensor(end, dtype=dtype).tolist()
                for end in (-math.inf if low is None else low, math.inf if high is None else high)
            )

    def _apply(self, i: int, inner: float) -> None:
        grad = self._grads[i]
        self._expects = False
        rows = None if self._rows is None else self._rows.parts[i]
        line = None if rows is None else in_line(grad)
        if rows is None or line is None:
            found = sum(self._edit(piece) for (piece,) in pieces(grad))
        else:
            found = self._edit_rows(line, rows, inner)
        if found:
            host(self.counts)[i] = found
            self._changed.append(i)

    def norms(self) -> Tensor:
        """The current 2-norms (N,) of the gradients; for sharded gradients, of the local shards."""
        if self._known is None:
            return tensor_norms(self._grads, exact=False)
        if not self._changed:
            return self._norms
        grads = [self._grads[i] for i in self._changed]
        parts = [None if self._rows is None else self._rows.parts[i] for i in self._changed]
        stand_ins = [g if part is None else part for g, part in zip(grads, parts, strict=True)]
        if all(part is None for part in parts):
            news = tensor_norms(grads)
        else:
            news = finish_norms(torch._foreach_norm(stand_ins), grads)
        norms = self._norms.to(torch.promote_types(self._norms.dtype, news.dtype), copy=True)
        norms[self._changed] = news.to(norms.dtype)
        return norms

    # -- on the host -----------------------------------------------------------------------------
    def _edit(self, piece: Tensor, rows: Tensor | None = None) -> float:
        """Change a piece and its row norms in place; returns the number of changed elements."""
        # If a piece of a tensor has outliers, the next piece usually has too: skip the check.
        if not self._expects and not self._has_outliers(piece):
            return 0.0
        new = self._room(piece)
        self._change(piece, new)
        # The flags overwrite the gradient until the new values are copied: one scratch is enough.
        found = _number(piece.ne_(new).sum(dtype=_count_type(piece)))
        piece.copy_(new)
        self._expects = found > 0
        if rows is not None and self._rows is not None and found:
            read_rows(new, rows, self._rows.width)
        return found

    def _groups(self, indices: list[int]) -> Iterator[list[int]]:
        """Groups of small gradients that fit into the scratch memory with their new values."""
        group: list[int] = []
        size = 0
        for i in indices:
            numel = self._grads[i].numel()
            if group and size + numel > chunk_size(self._grads[i]) // 2:
                yield group
                group, size = [], 0
            group.append(i)
            size += numel
        if group:
            yield group

    def _edit_together(self, indices: list[int]) -> None:
        """:meth:`_edit` for some small gradients, concatenated."""
        grads = [self._grads[i] for i in indices]
        sizes = [grad.numel() for grad in grads]
        total = sum(sizes)
        both = self._room(grads[0].new_empty(0), 2 * total)
        old, new = both.split(total)  # type: ignore[no-untyped-call]
        torch.cat([grad.reshape(-1) for grad in grads], out=old)
        if not self._has_outliers(old):
            return
        self._change(old, new)
        starts = np.cumsum([0, *sizes[:-1]])
        found = np.add.reduceat(host(old != new), starts, dtype=np.float64)
        host(self.counts)[indices] = found
        hit = np.flatnonzero(found).tolist()
        self._changed += [indices[j] for j in hit]
        news = new.split(sizes)
        foreach_copy_([grads[j] for j in hit], [news[j].view(grads[j].shape) for j in hit])

    def _edit_rows(self, line: Tensor, rows: Tensor, inner: float) -> float:
        """Change the rows of a tensor whose norm does not exclude an element outside the range."""
        assert self._rows is not None
        width = self._rows.width
        size = max(chunk_size(line) // width, 1)
        hot = None if inner < _SMALLEST else ~(host(rows) <= _MARGIN * inner)
        if hot is None or np.count_nonzero(hot) > _MANY * len(hot):
            lines = line.split(size * width)  # type: ignore[no-untyped-call]
            parts = rows.split(size)  # type: ignore[no-untyped-call]
            return sum(self._edit(*pair) for pair in zip(lines, parts, strict=True))
        which = np.flatnonzero(hot)
        found = 0.0
        full = line.numel() // width
        if len(which) and which[-1] == full:
            # The last row is shorter than the others.
            found += self._edit(line[full * width :], rows[full:])
            which = which[:-1]
        matrix = line[: full * width].view(full, width)
        if len(which):
            indices = torch.from_numpy(which)
            for index in indices.split(max(size // 2, 1)):  # type: ignore[no-untyped-call]
                found += self._edit_some(matrix, rows, index)
        return found

    def _edit_some(self, matrix: Tensor, rows: Tensor, index: Tensor) -> float:
        """:meth:`_edit` for some rows of a matrix, gathered."""
        room = self._room(matrix, 2 * len(index))
        some, new = room.split(len(index))  # type: ignore[no-untyped-call]
        torch.index_select(matrix, 0, index, out=some)
        if not self._has_outliers(some):
            return 0.0
        self._change(some, new)
        found = _number(some.ne_(new).sum(dtype=_count_type(some)))
        matrix.index_copy_(0, index, new)
        rows.index_copy_(0, index, torch.linalg.vector_norm(new, dim=1))
        return found

    def _has_outliers(self, piece: Tensor) -> bool:
        if not piece.numel():
            return False
        bottom, top = aminmax(piece)
        # Negated, so that NaN counts as outside.
        return not (bottom.tolist() >= self._low and top.tolist() <= self._high)

    def _room(self, like: Tensor, rows: int | None = None) -> Tensor:
        """Scratch memory in the shape of a tensor, or of some of its rows; reused by each call."""
        shape = like.shape if rows is None else (rows, *like.shape[1:])
        size = math.prod(shape)
        if not like.is_contiguous() or size > chunk_size(like):
            return torch.empty_like(like) if rows is None else like.new_empty(shape)
        if self._scratch is None or self._scratch.dtype != like.dtype:
            self._scratch = like.new_empty(chunk_size(like))
        return self._scratch[:size].view(shape)


def _inner(low: float | None, high: float | None) -> float:
    """The largest absolute value that is certainly inside the range."""
    return min(end for end in (None if low is None else -low, high) if end is not None)


def _largest_rows(rows: RowNorms) -> np.ndarray:
    """The largest row norm of each gradient that has rows."""
    starts = np.cumsum([0, *(len(rows.rows_of(i)) for i in rows.places[:-1])])
    return np.maximum.reduceat(host(rows.flat), starts)


def _number(tensor: Tensor) -> float:
    """The value of a 0-d tensor in host memory."""
    # Unlike item(), tolist() does not dispatch a device read.
    return tensor.tolist()  # type: ignore[return-value]


def _count_type(piece: Tensor) -> torch.dtype:
    # float32 counts exactly up to 2**24, and is the fastest to sum.
    return torch.float32 if piece.numel() <= 1 << 24 else torch.float64
