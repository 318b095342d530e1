"""Kernels for gradients in host memory: all gradients in one pass.

On a CPU, passes over memory dominate the cost of clipping. PyTorch has no operation that measures,
counts and clamps in one pass, nor one that measures many small tensors in one call. With `Numba
<https://numba.pydata.org>`_ installed (``pip install gclip-mm[cpu]``), the loops of
:mod:`~gclip_mm.clipping.kernels.host_kernels` do both, for float32 gradients. Without Numba, or
with ``GCLIP_NUMBA=0`` in the environment, clipping falls back to torch. Both give the same numbers
within rounding, and the tests compare them. The loops are compiled at first use, which takes some
seconds, and cached on disk.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import math
import os
import warnings
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..host import host, np
from . import host_threads
from .host_threads import Crew, Shares, run
from .multi_tensor import Units, is_run

#: Most elements of an item: small enough to divide the items evenly among threads.
_ITEM = 1 << 15
_KINDS = {Tensor, Parameter}
_NOTHING = torch.empty(0)


class Scan(NamedTuple):
    """The result of :meth:`HostTensors.scan`.

    Attributes:
        norms: (U,) float64, 2-norms of the units; inf or NaN where an element is.
        posts: (U,) float64, 2-norms of the clamped units.
        totals: (2,) float64, 2-norm of all units, before and after clamping.
        changed: number of elements outside the range.
        written: whether the clamped values have been written.
        hot: (I,) bool, the items with elements outside the range.
        bounds: (2,) float32, the range.
    """

    norms: Tensor
    posts: Tensor
    totals: Tensor
    changed: float
    written: bool
    hot: np.ndarray
    bounds: np.ndarray


class HostTensors:
    """Measures, scales and clamps the units of tensors in host memory, like ``MultiTensor``.

    The units are cut into I items, which the threads of torch share. The order of summation does
    not depend on the number of threads.

    Args:
        units: the units of each of the T tensors.
        tensors: T tensors with the shapes of those that :meth:`take` will get.
        size: U, greater than the number of every unit; None: units are numbered without gaps.
    """

    def __init__(self, units: list[Units], tensors: list[Tensor], size: int | None = None) -> None:
        first, rows, length = np.array(units, dtype=np.int64).reshape(-1, 3).T
        self._size = int(rows.sum()) if size is None else size
        per_unit = -(-length // _ITEM)
        # Index of the first item of each tensor; at the end, the number of items.
        self._starts = np.concatenate([[0], np.cumsum(rows * per_unit)])
        self._tensor = np.repeat(np.arange(len(units)), rows * per_unit)
        place = np.arange(len(self._tensor)) - self._starts[self._tensor]
        row, part = np.divmod(place, per_unit[self._tensor])
        length = length[self._tensor]
        self._offsets = 4 * (row * length + part * _ITEM)
        self._counts = np.minimum(length - part * _ITEM, _ITEM)
        self._unit = first[self._tensor] + row
        self._heads = np.flatnonzero(part == 0)
        # Whether _of_units() can skip the sum over items, and the reordering.
        self._are_items = len(self._heads) == len(part)
        self._are_in_order = np.array_equal(self._unit[self._heads], np.arange(self._size))
        self._sizes = np.array([tensor.numel() for tensor in tensors], dtype=np.int64)
        self._shapes = [tensor.shape for tensor in tensors]
        self._rows = [unit.rows for unit in units]
        self._numels: list[int] = self._sizes.tolist()
        self._are_whole = self._rows == [1] * len(units)
        self._forget_use()

    def _forget_use(self) -> None:
        """Drop what depends on the tensors taken, and what is made when first used."""
        self._whole_crew: Crew | None = None
        self._pairs: Crew | None = None
        self._taken: list[int] = []
        self._addresses = self._offsets

    def restricted(self, keep: np.ndarray, numbers: np.ndarray, size: int) -> HostTensors:
        """The tables for some of the T tensors, made without a loop over tensors.

        The second half of the tensors are weights, as for :meth:`limit`.

        Args:
            keep: (T,) bool, the tensors.
            numbers: (U,) int64, new number of every unit of these tensors.
            size: new U.
        """
        part = copy.copy(self)
        items = np.flatnonzero(keep[self._tensor])
        part._size = size
        part._starts = np.concatenate([[0], np.cumsum(np.diff(self._starts)[keep])])
        part._tensor = (np.cumsum(keep) - 1)[self._tensor[items]]
        part._offsets = self._offsets[items]
        part._counts = self._counts[items]
        part._unit = numbers[self._unit[items]]
        if self._are_items:
            part._heads = self._heads[: len(items)]
        else:
            is_head = np.zeros(len(self._counts), dtype=bool)
            is_head[self._heads] = True
            part._heads = np.flatnonzero(is_head[items])
        part._are_items = len(part._heads) == len(items)
        # Units keep their order.
        part._are_in_order = self._are_in_order or np.array_equal(
            part._unit[part._heads], np.arange(size)
        )
        part._sizes = self._sizes[keep]
        chosen = keep.tolist()
        part._shapes = list(itertools.compress(self._shapes, chosen))
        part._rows = list(itertools.compress(self._rows, chosen))
        part._numels = part._sizes.tolist()
        part._are_whole = part._rows == [1] * len(part._rows)
        part._forget_use()
        half = len(keep) // 2
        if self._pairs is None:
            self._pairs = self._crew_for(half)
        part._pairs = self._pairs.restricted(keep[self._tensor[: self._starts[half]]])
        return part

    @property
    def _crew(self) -> Crew:
        if self._whole_crew is None:
            self._whole_crew = self._crew_for(len(self._sizes))
        return self._whole_crew

    def _crew_for(self, tensors: int) -> Crew:
        """Divides the items of the first tensors."""
        end = self._starts[tensors]
        offsets, counts = self._offsets[:end] // 4, self._counts[:end]
        return Crew(self._tensor[:end], offsets, counts, self._sizes[:tensors])

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether the tensors have the shapes that the tables were made for.

        If units are whole tensors, only the number of elements matters.
        """
        if self._are_whole:
            return list(map(Tensor.numel, tensors)) == self._numels
        return list(map(attrgetter('shape'), tensors)) == self._shapes

    def take(self, tensors: list[Tensor]) -> bool:
        """Use these tensors from now on; False if the kernels cannot.

        Each tensor has to be contiguous (:func:`~gclip_mm.clipping.kernels.multi_tensor.is_run`),
        float32 and in host memory, and no two may share memory. The caller keeps the tensors alive.
        """
        # A Python loop over the tensors would take longer than the norms of small tensors.
        if (
            not _KINDS.issuperset(map(type, tensors))
            or not {torch.float32}.issuperset(map(attrgetter('dtype'), tensors))
            or not {-1}.issuperset(map(Tensor.get_device, tensors))
            or not (
                all(map(Tensor.is_contiguous, tensors)) or all(map(is_run, tensors, self._rows))
            )
            or any(map(Tensor.is_neg, tensors))
        ):
            return False
        addresses = list(map(Tensor.data_ptr, tensors))
        if addresses != self._taken:
            starts = np.array(addresses, dtype=np.int64)
            if not self._are_apart(starts):
                return False
            self._taken = addresses
            self._addresses = starts[self._tensor] + self._offsets
        return True

    def has(self, tensors: list[Tensor]) -> bool:
        """Whether these have the addresses of the first tensors given to :meth:`take`."""
        return list(map(Tensor.data_ptr, tensors)) == self._taken[: len(tensors)]

    def _are_apart(self, starts: np.ndarray) -> bool:
        """Whether no two of the tensors, which start at these addresses, share memory."""
        filled = np.flatnonzero(self._sizes)
        order = filled[np.argsort(starts[filled])]
        starts, ends = starts[order], starts[order] + 4 * self._sizes[order]
        return bool((starts > 0).all() and (starts[1:] >= ends[:-1]).all())

    def norms(self, p: float = 2.0) -> Tensor:
        """2-norm of every unit, (U,) float64; inf or NaN where an element is.

        Args:
            p: order of the norm; only 2 is supported.

        Raises:
            ValueError: another order.
        """
        if p != 2:
            raise ValueError(f'there is no kernel for norms of order {p} in host memory')
        squares = np.empty(len(self._counts))
        # Backwards: the optimizer starts with the first tensors, which are then in the cache.
        self._run(kernels().measure, None, squares, backwards=True)
        return self._of_units(squares)

    def scale(self, coefs: Tensor, count: int | None = None) -> None:
        """Multiply every unit in place by its coefficient; 1 writes nothing.

        Args:
            coefs: (U,), or one for each unit of the tensors to scale.
            count: scale the first ``count`` tensors only; None: all.
        """
        each, end = np.ones(len(self._counts)), self._starts[-1 if count is None else count]
        each[:end] = coefs.to(torch.float64).numpy()[self._unit[:end]]
        self._run(kernels().scale, each, shares=self._crew.shares(each != 1))

    @property
    def can_limit(self) -> bool:
        """Whether :meth:`limit` may be called: no unit is cut into several items."""
        return self._are_items

    def limit(self, eps: float, factor: float) -> Tensor:
        """Scale units of gradients down to a multiple of the norm of their weights, in one pass.

        The first half of the tensors are gradients, the second half their weights, with units in
        the same order. A unit of a gradient whose norm is above
        ``factor * max(norm of its weights, eps)`` is scaled to it in place, while it is still in
        the cache of the core. A unit that is not finite is not changed.

        Returns:
            (U,) float64, 2-norms of all units before scaling.
        """
        squares = np.empty(len(self._counts))
        if self._pairs is None:
            self._pairs = self._crew_for(len(self._sizes) // 2)
        given = np.array([eps, factor], dtype=np.float64)
        self._run(kernels().limit, given, squares, self._pairs.shares(), backwards=True)
        return self._of_units(squares)

    def scan(self, low: float | None, high: float | None, write: bool) -> Scan:
        """Measure all units as they are and as they are after clamping.

        Args:
            low: lower end of the range, or None.
            high: upper end of the range, or None.
            write: clamp in the same pass. A block with a non-finite element is not changed.
        """
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        with np.errstate(over='ignore'):
            bounds = np.array([low, high, max(min(-low, high), -1.0)]).astype(np.float32)
        results = np.empty((len(self._counts), 3))
        self._run(kernels().scan, bounds, results, write=write, backwards=True)
        # Sums of squares of float32 numbers neither overflow nor underflow in float64.
        before, after, changed = results.sum(axis=0).tolist()
        totals = torch.from_numpy(np.sqrt([before, after]))
        norms, hot = self._of_units(results[:, :2]), results[:, 2] > 0
        return Scan(norms[:, 0], norms[:, 1], totals, changed, write, hot, bounds[:2])

    def write(self, scan: Scan) -> None:
        """Clamp the items in which a scan has found elements outside the range."""
        self._run(kernels().clamp, scan.bounds, shares=self._crew.shares(scan.hot))

    def _run(
        self,
        kernel: Any,
        given: np.ndarray | None,
        results: np.ndarray | None = None,
        shares: Shares | None = None,
        **options: bool,
    ) -> None:
        """Run a kernel on all items, or on those of ``shares``."""
        shares = self._crew.shares() if shares is None else shares
        if len(shares.order):
            run(kernel, shares, self._addresses, self._counts, given, results, **options)

    def _of_units(self, squares: np.ndarray) -> Tensor:
        """2-norms of the units (U, ...) from sums of squares of the items (I, ...)."""
        sums = squares if self._are_items else np.add.reduceat(squares, self._heads)
        norms = np.sqrt(sums)
        if not self._are_in_order:
            everywhere = np.zeros((self._size, *norms.shape[1:]))
            everywhere[self._unit[self._heads]] = norms
            norms = everywhere
        return torch.from_numpy(norms)


def can_take(tensor: Tensor) -> bool:
    """Whether there are kernels for a tensor of this class, dtype and device."""
    if tensor.dtype is not torch.float32 or type(tensor) not in _KINDS or host(_NOTHING) is None:
        return False
    return tensor.device.type == 'cpu' and _library() is not None


def kernels() -> ModuleType:
    """The module of kernels, where :func:`can_take` has found that there is one."""
    library = _library()
    assert library is not None, 'without kernels no HostTensors is used'
    return library


@functools.cache
def _library() -> ModuleType | None:
    """The module of kernels, or None if it is turned off or does not work here."""
    if np is None or os.environ.get('GCLIP_NUMBA') == '0' or host_threads.library() is None:
        return None
    try:
        if importlib.util.find_spec('numba') is None:
            return None
        from . import host_kernels

        _try(host_kernels)
    except Exception as error:
        warnings.warn(
            f"Numba cannot run gclip_mm's kernels ({type(error).__name__}: {error}); clipping "
            'falls back to torch, more slowly. GCLIP_NUMBA=0 silences this',
            stacklevel=2,
        )
        return None
    return host_kernels


def _try(kernels: ModuleType) -> None:
    """Run each kernel on two items, on two threads if there are several.

    Raises:
        RuntimeError: a wrong result.
    """
    values = np.ones(2, dtype=np.float32)
    items, counts = values.ctypes.data + np.array([0, 4]), np.ones(2, dtype=np.int64)
    threads = torch.get_num_threads()
    parts = np.minimum(np.arange(threads + 1), 2) if threads > 1 else np.array([0, 2])
    shares = Shares(np.arange(2), parts, threads)
    bounds, results = np.array([-1, 0.5, 0.5], dtype=np.float32), np.empty((2, 3))
    squares = np.empty(2)
    run(kernels.measure, shares, items, counts, results=squares)
    run(kernels.scan, shares, items, counts, bounds, results)
    run(kernels.clamp, shares, items, counts, bounds)
    run(kernels.scale, shares, items, counts, np.full(2, 0.5))
    one = Shares(np.arange(1), np.array([0, 1]), 1)
    limits = np.empty(2)
    run(kernels.limit, one, items, counts, np.array([0.1, 0.5]), limits)
    found = squares.tolist(), results.tolist(), values.tolist(), limits.tolist()
    if found != ([1.0] * 2, [[1.0, 0.25, 1.0]] * 2, [0.125, 0.25], [0.0625] * 2):
        raise RuntimeError(f'wrong results: {found}')
    # 0.125 - 0.25 was added, and half of that is kept.
    given, moved = np.array([kernels.DIFFERENCE, 0, 0, 0, 0.5]), np.empty(1)
    run(kernels.update, one, items, counts, given, moved)
    run(kernels.update, one, items, counts, given, write=True)
    update = moved.tolist(), values.tolist()
    if update != ([0.015625], [0.1875, 0.25]):
        raise RuntimeError(f'wrong results: {update}')
