"""Tables that tell one launch the addresses of many tensors and the work on each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Most elements that one program of a kernel handles; several programs share a longer unit.
CHUNK = 1 << 15

#: The dtypes that the kernels support.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Units(NamedTuple):
    """The units of one tensor.

    Attributes:
        first: number of its first unit; the other numbers follow.
        rows: how many units; they have equal lengths and follow each other in memory.
        length: elements of each unit.
    """

    first: int
    rows: int
    length: int


class MultiTensor:
    """Measures, scales and clamps the units of many tensors, in one launch each.

    There is one launch for each dtype among the tensors, which is one in most models. No call reads
    the device. Sums are accumulated in float64, in an order that does not depend on timing, so
    equal gradients have equal norms in every process.

    Args:
        units: the units of each of the T tensors.
        tensors: T tensors with the shapes, dtypes and device of those that :meth:`take` will get.
        size: U, greater than the number of every unit; None: units are numbered without gaps.
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
        """Whether the tensors have the shapes that the tables were made for."""
        return [tensor.shape for tensor in tensors] == self._shapes

    def take(self, tensors: list[Tensor]) -> bool:
        """Use these tensors from now on; False if the kernels cannot.

        Each tensor has to be contiguous (:func:`is_run`), of a dtype in ``DTYPES`` and on the same
        device, and no two may share memory.
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

    @property
    def _table(self) -> Tensor:
        """The addresses of the tensors, (T,) int64 on the device."""
        assert self._pointers is not None, 'call take() first'
        return self._pointers

    def has(self, tensors: list[Tensor]) -> bool:
        """Whether these have the addresses of the first tensors given to :meth:`take`."""
        return [tensor.data_ptr() for tensor in tensors] == self._addresses[: len(tensors)]

    def norms(self, p: float = 2.0) -> Tensor:
        """p-norm of every unit, (U,) float64; inf or NaN where an element is.

        The result is undefined at numbers that no unit has.

        Args:
            p: order of the norm, greater than 0, or ``math.inf``.
        """
        from . import multi_tensor_kernels

        norms = torch.empty(self._units, dtype=torch.float64, device=self._device)
        for dtype, work in self._work.items():
            where = work.items, self._table, work.partials, self._arrived
            multi_tensor_kernels.measure(dtype, *where, norms, p)
        return norms

    def scale(self, coefs: Tensor, count: int | None = None) -> None:
        """Multiply every unit in place by its coefficient; 1 writes nothing.

        Args:
            coefs: (U,), or one for each unit of the tensors to scale.
            count: scale the first ``count`` tensors only; None: all.
        """
        from . import multi_tensor_kernels

        coefs = coefs.to(self._device, torch.float64)
        for dtype, work in self._work.items():
            items = work.items if count is None else work.items[: work.items_of_first(count)]
            if len(items):
                multi_tensor_kernels.scale(dtype, items, self._table, coefs)

    def clamp(self, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
        """Clamp every element in place, as ``torch.clamp`` does; only changed elements are written.

        The bounds are rounded to the dtype of each tensor; a bound that overflows it has no effect.
        NaN stays NaN and counts as changed.

        Args:
            low: lower bound, or None.
            high: upper bound, at least ``low``, or None.

        Returns:
            Number of changed elements of each unit, and 2-norms of the clamped units; both (U,)
            float64, undefined at numbers that no unit has.
        """
        from . import multi_tensor_kernels

        counts = torch.empty(self._units, dtype=torch.float64, device=self._device)
        norms = torch.empty_like(counts)
        for dtype, work in self._work.items():
            multi_tensor_kernels.clamp(
                dtype,
                work.items,
                self._table,
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
    """The work of one launch: the tensors of one dtype, cut into items, one for each program.

    Attributes:
        items: (I, 6) int64, a row for each item: index of the tensor, offset of the item in it,
            length, number of its unit, row of the unit's first item, items of the unit.
        partials: (I,) float64, scratch for the norms of the items.
        changed: (I,) float64, scratch for the number of elements that a clamp changes.
    """

    def __init__(self, members: list[int], units: list[Units], dtype: torch.dtype) -> None:
        self._members = members
        tables: list[Tensor] = []
        #: Rows of the table up to the end of each member.
        self._ends: list[int] = []
        start = 0
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
        """How many items the first ``count`` tensors have: the first rows of the table."""
        inside = sum(k < count for k in self._members)
        return self._ends[inside - 1] if inside else 0


def _cut(place: int, units: Units, start: int) -> Tensor:
    """The items of tensor ``place``, (items, 6) int64; the first will be row ``start``."""
    # A unit without elements gets an item too: its norm, 0, has to be written.
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
    """Whether a tensor is contiguous, whatever the order of its axes in memory.

    Args:
        tensor: a tensor of any strides.
        rows: if more than 1, ``tensor[i]`` also has to be contiguous for each i.
    """
    if tensor.is_contiguous():
        return True
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    expected = 1
    # The stride of an axis of one element has no meaning.
    axes = [(step, n) for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]
    for step, n in sorted(axes):
        if step != expected:
            return False
        expected *= n
    return rows == 1 or tensor.shape[0] == 1 or tensor.stride(0) == max(axes)[0]


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """Copy a table to the device without waiting."""
    if device.type == 'cpu':
        return table
    # torch does not reuse the pinned memory before the copy is done.
    return table.pin_memory().to(device, non_blocking=True)
