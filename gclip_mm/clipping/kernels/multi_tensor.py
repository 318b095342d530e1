"""The tables that tell one launch where many tensors lie and what is to be done with each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Elements that one program of a kernel goes through at most. A longer unit is shared by several.
CHUNK = 1 << 15

#: Types of element that the kernels know.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Units(NamedTuple):
    """The units of one tensor.

    Attributes:
        first: the number of its first unit; the others follow.
        rows: how many units it has: runs of memory of equal length, one after another.
        length: elements of each.
    """

    first: int
    rows: int
    length: int


class MultiTensor:
    """Measures, scales and clamps the units of many tensors, in one launch each.

    There is one launch for each type of element among the tensors, which is one in most models. No
    call reads the device. Sums are accumulated in float64, in an order that does not depend on
    timing, so that equal gradients have equal norms on every process.

    Args:
        units: of each of the T tensors.
        tensors: T tensors of the shapes, types and device that :meth:`take` will be given.
        size: U, above every unit's number; None: the units are numbered without gaps.
    """

    def __init__(self, units: list[Units], tensors: list[Tensor], size: int | None = None) -> None:
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._shapes = [tensor.shape for tensor in tensors]
        self._rows = [unit.rows for unit in units]
        self._device = tensors[0].device
        self._units = sum(unit.rows for unit in units) if size is None else size
        self._arrived = torch.zeros(self._units, dtype=torch.int32, device=self._device)
        self._work = {
            dtype: _Work([k for k, kind in enumerate(self._dtypes) if kind == dtype], units, dtype)
            for dtype in dict.fromkeys(self._dtypes)
        }
        for work in self._work.values():
            work.move_to(self._device)
        self._addresses: list[int] = []
        self._pointers: Tensor | None = None

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether these have the shapes that the tables were made for."""
        return [tensor.shape for tensor in tensors] == self._shapes

    def take(self, tensors: list[Tensor]) -> bool:
        """Work on these tensors from now on; False: they cannot be worked on.

        They can if each fills a stretch of memory without gaps (:func:`is_run`), is of a type in
        ``DTYPES``, on the one device, and if no two share their memory.
        """
        for tensor, dtype, rows in zip(tensors, self._dtypes, self._rows, strict=True):
            if tensor.dtype is not dtype or not is_run(tensor, rows):
                return False
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses == self._addresses:
            return True
        if any(t.dtype not in DTYPES or t.device != self._device for t in tensors):
            return False
        if len(set(addresses)) < len(addresses):
            filled = [a for a, t in zip(addresses, tensors, strict=True) if t.numel()]
            if len(set(filled)) < len(filled):
                return False
        self._addresses = addresses
        self._pointers = _upload(torch.tensor(addresses, dtype=torch.int64), self._device)
        return True

    def has(self, tensors: list[Tensor]) -> bool:
        """Whether these are the first of those that have been taken, and lie where they lay."""
        return [tensor.data_ptr() for tensor in tensors] == self._addresses[: len(tensors)]

    def norms(self, p: float = 2.0) -> Tensor:
        """p-norm of every unit, (U,) float64; inf or NaN where an element is.

        Of numbers that no unit has, what is there is undefined.

        Args:
            p: order of the norm, greater than 0, or ``math.inf``.
        """
        from . import multi_tensor_kernels

        norms = torch.empty(self._units, dtype=torch.float64, device=self._device)
        for dtype, work in self._work.items():
            where = work.items, self._pointers, work.partials, self._arrived
            multi_tensor_kernels.measure(dtype, *where, norms, p)
        return norms

    def scale(self, coefs: Tensor, count: int | None = None) -> None:
        """Multiply every unit in place by its coefficient; where that is 1, nothing is written.

        Args:
            coefs: (U,), or as many as there are units in the tensors to be scaled.
            count: scale the first ``count`` tensors only; None: all.
        """
        from . import multi_tensor_kernels

        coefs = coefs.to(self._device, torch.float64)
        for dtype, work in self._work.items():
            items = work.items if count is None else work.items[: work.items_of_first(count)]
            if len(items):
                multi_tensor_kernels.scale(dtype, items, self._pointers, coefs)

    def clamp(self, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
        """Clamp every element in place, as ``torch.clamp`` does; nothing else is written.

        The bounds are rounded to each tensor's own type; one that is too large for it is none. NaN
        stays NaN, and is counted.

        Args:
            low: lower bound; None: there is none.
            high: upper bound, at least ``low``; None: there is none.

        Returns:
            (U,) float64, how many elements of each unit do not equal what they were; and (U,)
            float64, the 2-norms of the clamped units. Of numbers that no unit has, what is there is
            undefined.
        """
        from . import multi_tensor_kernels

        counts = torch.empty(self._units, dtype=torch.float64, device=self._device)
        norms = torch.empty_like(counts)
        for dtype, work in self._work.items():
            multi_tensor_kernels.clamp(
                dtype,
                work.items,
                self._pointers,
                low,
                high,
                work.partials,
                work.changed,
                self._arrived,
                counts,
                norms,
            )
        return counts, norms


class _Work:
    """What the programs of a launch do: the tensors of one type, cut into items.

    ``items`` is an int64 table (I, 6), a row for each program: the place of the tensor, the offset
    of the item in it, its length, the number of its unit, the place of the unit's first item in
    this table, and how many items the unit has. ``partials`` (I,) takes the norms of the items,
    ``changed`` (I,) how many of their elements a clamp has changed; both float64.
    """

    def __init__(self, members: list[int], units: list[Units], dtype: torch.dtype) -> None:
        self._members = members
        tables, self._ends, start = [], [], 0
        for k in members:
            table = _cut(k, units[k], start)
            tables.append(table)
            start += len(table)
            self._ends.append(start)
        self.items = torch.cat(tables)
        self.partials = torch.empty(start, dtype=torch.float64)
        self.changed = torch.empty_like(self.partials)

    def move_to(self, device: torch.device) -> None:
        self.items = _upload(self.items, device)
        self.partials = self.partials.to(device)
        self.changed = self.changed.to(device)

    def items_of_first(self, count: int) -> int:
        """How many items the first ``count`` of all tensors have; they come first in the table."""
        inside = sum(k < count for k in self._members)
        return self._ends[inside - 1] if inside else 0


def _cut(place: int, units: Units, start: int) -> Tensor:
    """The items of one tensor, whose first has the place ``start`` in the table."""
    # A unit without elements gets an item all the same: its norm, 0, has to be written.
    per_unit = max(1, -(-units.length // CHUNK))
    row = torch.arange(units.rows).repeat_interleave(per_unit)
    begin = torch.arange(per_unit).repeat(units.rows) * CHUNK
    columns = [
        torch.full_like(row, place),
        row * units.length + begin,
        (units.length - begin).clamp(max=CHUNK),
        units.first + row,
        start + row * per_unit,
        torch.full_like(row, per_unit),
    ]
    return torch.stack(columns, dim=1)


def is_run(tensor: Tensor, rows: int) -> bool:
    """Whether the elements fill a stretch of memory, in any order.

    Args:
        tensor: of any strides.
        rows: if more than 1, whether those of each first index lie together, too.
    """
    if tensor.is_contiguous():
        return True
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    expected = 1
    # An axis of one element has any stride.
    axes = [(step, n) for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]
    for step, n in sorted(axes):
        if step != expected:
            return False
        expected *= n
    return rows == 1 or tensor.shape[0] == 1 or tensor.stride(0) == max(axes)[0]


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    if device.type == 'cpu':
        return table
    # From pinned memory; torch does not give it to anybody else before the copy is through.
    return table.pin_memory().to(device, non_blocking=True)
