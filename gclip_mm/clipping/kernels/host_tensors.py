"""The same for gradients in host memory: all of them in one pass.

On a CPU a pass over memory is what clipping costs, and PyTorch has no operation that measures,
counts and clamps at once, nor one that measures many small tensors in one call. With `Numba
<https://numba.pydata.org>`_ installed (``pip install gclip-mm[cpu]``) the loops of
:mod:`~gclip_mm.clipping.kernels.host_kernels` do, for float32 gradients. Without it, or with
``GCLIP_NUMBA=0`` in the environment, the ordinary path is taken; it gives the same numbers within
rounding, and is what the tests compare with. They are compiled at first use, which takes some
seconds, and kept on disk.
"""

from __future__ import annotations

import functools
import importlib.util
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

#: Elements of an item at most: enough of them to share out evenly among threads.
_ITEM = 1 << 15
_KINDS = {Tensor, Parameter}
_NOTHING = torch.empty(0)


class Scan(NamedTuple):
    """What :meth:`HostTensors.scan` has found.

    Attributes:
        norms: (U,) float64, the 2-norms of the units; inf or NaN where an element is.
        posts: (U,) float64, the same of their clamped values.
        totals: (2,) float64, the 2-norm of everything, and the same of the clamped values.
        changed: float, how many elements are outside the range.
        written: whether the clamped values have been written.
        hot: (I,) bool, the items that have elements outside.
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
    """Does for tensors in host memory what ``MultiTensor`` does on a GPU, and scans them.

    The units are cut into items, which as many threads share as torch uses. What is summed in what
    order does not depend on their number.

    Args:
        units: of each of the T tensors.
        tensors: T tensors of the shapes that :meth:`take` will be given.
        size: U, above every unit's number; None: the units are numbered without gaps.
    """

    def __init__(self, units: list[Units], tensors: list[Tensor], size: int | None = None) -> None:
        first, rows, length = np.array(units, dtype=np.int64).reshape(-1, 3).T
        self._size = int(rows.sum()) if size is None else size
        per_unit = -(-length // _ITEM)
        # The number of the first item of each tensor, and of the one after the last.
        self._starts = np.concatenate([[0], np.cumsum(rows * per_unit)])
        self._tensor = np.repeat(np.arange(len(units)), rows * per_unit)
        place = np.arange(len(self._tensor)) - self._starts[self._tensor]
        row, part = np.divmod(place, per_unit[self._tensor])
        length = length[self._tensor]
        self._offsets = 4 * (row * length + part * _ITEM)
        self._counts = np.minimum(length - part * _ITEM, _ITEM)
        self._unit = first[self._tensor] + row
        self._heads = np.flatnonzero(part == 0)
        # Units of an item each need not be summed up; nor put in order, if they are.
        self._are_items = len(self._heads) == len(part)
        self._are_in_order = np.array_equal(self._unit[self._heads], np.arange(self._size))
        self._sizes = np.array([tensor.numel() for tensor in tensors], dtype=np.int64)
        self._shapes = [tensor.shape for tensor in tensors]
        self._rows = [unit.rows for unit in units]
        self._numels = self._sizes.tolist()
        self._are_whole = self._rows == [1] * len(units)
        self._crew = self._crew_for(len(units))
        self._pairs: Crew | None = None
        self._taken: list[int] = []
        self._addresses = self._offsets

    def _crew_for(self, tensors: int) -> Crew:
        """Shares out the items of the first tensors."""
        end = self._starts[tensors]
        offsets, counts = self._offsets[:end] // 4, self._counts[:end]
        return Crew(self._tensor[:end], offsets, counts, self._sizes[:tensors])

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether these have the shapes that the tables were made for.

        Of units that are whole tensors, the sizes.
        """
        if self._are_whole:
            return list(map(Tensor.numel, tensors)) == self._numels
        return list(map(attrgetter('shape'), tensors)) == self._shapes

    def take(self, tensors: list[Tensor]) -> bool:
        """Work on these tensors from now on; False: they cannot be worked on.

        They can if all are float32 in host memory, lie there as ``MultiTensor`` asks for, and no
        two share their memory. Whoever calls keeps them alive.
        """
        # Asked for one by one, all this would take longer than the norms of small tensors.
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
        """Whether these are the first of those that have been taken, and lie where they lay."""
        return list(map(Tensor.data_ptr, tensors)) == self._taken[: len(tensors)]

    def _are_apart(self, starts: np.ndarray) -> bool:
        """Whether each tensor has memory, which begins there, and none has any of another's."""
        filled = np.flatnonzero(self._sizes)
        order = filled[np.argsort(starts[filled])]
        starts, ends = starts[order], starts[order] + 4 * self._sizes[order]
        return bool((starts > 0).all() and (starts[1:] >= ends[:-1]).all())

    def norms(self, p: float = 2.0) -> Tensor:
        """2-norm of every unit, (U,) float64; inf or NaN where an element is.

        Raises:
            ValueError: ``p``, the order, is another.
        """
        if p != 2:
            raise ValueError(f'there is no kernel for norms of order {p} in host memory')
        squares = np.empty(len(self._counts))
        # The last ones first: the optimizer begins with the first, and finds them in the cache.
        self._run(_library().measure, None, squares, backwards=True)
        return self._of_units(squares)

    def scale(self, coefs: Tensor, count: int | None = None) -> None:
        """Multiply every unit in place by its coefficient; where that is 1, nothing is written.

        Args:
            coefs: (U,), or as many as there are units in the tensors to be scaled.
            count: scale the first ``count`` tensors only; None: all.
        """
        each, end = np.ones(len(self._counts)), self._starts[-1 if count is None else count]
        each[:end] = coefs.to(torch.float64).numpy()[self._unit[:end]]
        self._run(_library().scale, each, shares=self._crew.shares(each != 1))

    @property
    def can_limit(self) -> bool:
        """Whether :meth:`limit` may be called: no unit is so large that it is cut into items."""
        return self._are_items

    def limit(self, eps: float, factor: float) -> Tensor:
        """What AGC does, in one pass: a row that is scaled is still in the core's cache.

        The second half of the tensors are the weights of which the first are the gradients, with
        their units in the same order. A unit of a gradient whose norm is above its limit, which is
        ``factor`` times that of its weights, or times ``eps`` where that is more, is scaled down to
        it. One that is not finite stays as it is.

        Returns:
            (U,) float64, the 2-norms of all units as they were.
        """
        squares = np.empty(len(self._counts))
        if self._pairs is None:
            self._pairs = self._crew_for(len(self._sizes) // 2)
        given = np.array([eps, factor], dtype=np.float64)
        self._run(_library().limit, given, squares, self._pairs.shares(), backwards=True)
        return self._of_units(squares)

    def scan(self, low: float | None, high: float | None, write: bool) -> Scan:
        """What there is, and what would be, or is, left of it when clamped.

        Args:
            low: lower end of the range; None: there is none.
            high: upper end.
            write: whether to clamp at once. Elements that are not finite stay as they are then, and
                so may some near them.
        """
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        with np.errstate(over='ignore'):
            bounds = np.array([low, high, max(min(-low, high), -1.0)]).astype(np.float32)
        results = np.empty((len(self._counts), 3))
        self._run(_library().scan, bounds, results, write=write, backwards=True)
        # In float64 no sum of squares of float32 numbers over- or underflows.
        *totals, changed = results.sum(axis=0).tolist()
        totals = torch.from_numpy(np.sqrt(totals))
        norms, hot = self._of_units(results[:, :2]), results[:, 2] > 0
        return Scan(norms[:, 0], norms[:, 1], totals, changed, write, hot, bounds[:2])

    def write(self, scan: Scan) -> None:
        """Write the clamped values where a scan has found that they differ."""
        self._run(_library().clamp, scan.bounds, shares=self._crew.shares(scan.hot))

    def _run(
        self,
        kernel: Any,
        given: np.ndarray | None,
        results: np.ndarray | None = None,
        shares: Shares | None = None,
        **options: bool,
    ) -> None:
        """Have a kernel work on all items, or on those that are shared out."""
        shares = self._crew.shares() if shares is None else shares
        if len(shares.order):
            run(kernel, shares, self._addresses, self._counts, given, results, **options)

    def _of_units(self, squares: np.ndarray) -> Tensor:
        """The norms of the units, (U, ...), given the sums of squares (I, ...) of the items."""
        sums = squares if self._are_items else np.add.reduceat(squares, self._heads)
        norms = np.sqrt(sums)
        if not self._are_in_order:
            everywhere = np.zeros((self._size, *norms.shape[1:]))
            everywhere[self._unit[self._heads]] = norms
            norms = everywhere
        return torch.from_numpy(norms)


def can_take(tensor: Tensor) -> bool:
    """Whether there are kernels for a tensor of this type, where it lies."""
    if tensor.dtype is not torch.float32 or type(tensor) not in _KINDS or host(_NOTHING) is None:
        return False
    return tensor.device.type == 'cpu' and _library() is not None


@functools.cache
def _library() -> ModuleType | None:
    """The kernels, or None where there are none."""
    if np is None or os.environ.get('GCLIP_NUMBA') == '0' or host_threads.library() is None:
        return None
    try:
        if importlib.util.find_spec('numba') is None:
            return None
        from . import host_kernels

        _try(host_kernels)
    except Exception as error:
        warnings.warn(
            f"Numba cannot run gclip_mm's kernels ({type(error).__name__}: {error}); clipping goes "
            'on without them, more slowly. GCLIP_NUMBA=0 silences this',
            stacklevel=2,
        )
        return None
    return host_kernels


def _try(kernels: ModuleType) -> None:
    """Whether they compute what they should, for two items, each for a thread of its own.

    Raises:
        RuntimeError: they do not.
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
