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

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..norms import host, np
from .multi_tensor import Units, is_run

#: Elements of an item at most: enough of them to share out evenly among threads.
_ITEM = 1 << 15
#: Threads are worth waking for this many elements.
_FEW = 1 << 15

# Whether this process was forked off one in which the kernels have run.
_forked = False


class Scan(NamedTuple):
    """What :meth:`HostTensors.scan` has found.

    Attributes:
        norms: (U,) float64, the 2-norms of the units; inf or NaN where an element is.
        posts: (U,) float64, the same of their clamped values.
        changed: float, how many elements are outside the range.
        written: whether the clamped values have been written.
        hot: the items that have elements outside.
        bounds: the range, as float32.
    """

    norms: Tensor
    posts: Tensor
    changed: float
    written: bool
    hot: np.ndarray
    bounds: tuple[np.float32, np.float32]


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
        self._is_filled = [tensor.numel() > 0 for tensor in tensors]
        self._cuts_for: dict[int, np.ndarray] = {}
        self._taken: list[int] = []
        self._addresses = self._offsets

    def take(self, tensors: list[Tensor]) -> bool:
        """Work on these tensors from now on; False: they cannot be worked on.

        They can if all are float32 in host memory, lie there as ``MultiTensor`` asks for, and no
        two share their memory. Whoever calls keeps them alive.
        """
        for tensor in tensors:
            if (
                tensor.dtype is not torch.float32
                or tensor.get_device() != -1
                or not is_run(tensor)
                or type(tensor) not in (Tensor, Parameter)
            ):
                return False
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._taken:
            filled = list(itertools.compress(addresses, self._is_filled))
            if len(set(filled)) < len(filled):
                return False
            self._taken = addresses
            starts = np.array(addresses, dtype=np.int64)
            self._addresses = starts[self._tensor] + self._offsets
        return True

    def norms(self) -> Tensor:
        """2-norm of every unit, (U,) float64; inf or NaN where an element is."""
        # A loop that only squares is no faster, nor is memory.
        return self.scan(None, None, write=False).norms

    def scale(self, coefs: Tensor, count: int | None = None) -> None:
        """Multiply every unit in place by its coefficient; where that is 1, nothing is written.

        Args:
            coefs: (U,), or as many as there are units in the tensors to be scaled.
            count: scale the first ``count`` tensors only; None: all.
        """
        items = slice(self._starts[-1 if count is None else count])
        each = coefs.to(torch.float64).numpy()[self._unit[items]]
        hot = np.flatnonzero(each != 1)
        if len(hot):
            counts = self._counts[hot]
            with _threads(counts):
                _library().scale(self._addresses[hot], counts, each[hot])

    def scan(self, low: float | None, high: float | None, write: bool) -> Scan:
        """What there is, and what would be, or is, left of it when clamped.

        Args:
            low: lower end of the range; None: there is none.
            high: upper end.
            write: whether to clamp at once. Elements that are not finite stay as they are then, and
                so may some near them.
        """
        with np.errstate(over='ignore'):
            bounds = (
                np.float32(-math.inf if low is None else low),
                np.float32(math.inf if high is None else high),
            )
        results = np.empty((len(self._counts), 3))
        with _threads(self._counts) as count:
            cuts = self._cuts(count)
            _library().scan(self._addresses, self._counts, cuts, *bounds, write, results)
        before, after, changed = results.T
        return Scan(
            self._of_units(before),
            self._of_units(after),
            float(changed.sum()),
            write,
            np.flatnonzero(changed),
            bounds,
        )

    def write(self, scan: Scan) -> None:
        """Write the clamped values where a scan has found that they differ."""
        if len(scan.hot):
            counts = self._counts[scan.hot]
            with _threads(counts):
                _library().clamp(self._addresses[scan.hot], counts, *scan.bounds)

    def _cuts(self, threads: int) -> np.ndarray:
        """Where the items of one thread end and those of the next begin, (threads + 1,)."""
        cuts = self._cuts_for.get(threads)
        if cuts is None:
            ends = np.cumsum(self._counts)
            total = ends[-1] if len(ends) else 0
            shares = total * np.arange(1, threads) // threads
            cuts = np.concatenate([[0], np.searchsorted(ends, shares), [len(ends)]])
            self._cuts_for[threads] = cuts = cuts.astype(np.int64)
        return cuts

    def _of_units(self, squares: np.ndarray) -> Tensor:
        """The norms of the units, (U,), given the sums of squares of the items."""
        norms = np.zeros(self._size)
        if len(self._heads):
            norms[self._unit[self._heads]] = np.sqrt(np.add.reduceat(squares, self._heads))
        return torch.from_numpy(norms)


def can_take(tensor: Tensor) -> bool:
    """Whether there are kernels for a tensor of this type, where it lies."""
    if tensor.dtype is not torch.float32 or host(tensor) is None:
        return False
    return _library() is not None


@contextlib.contextmanager
def _threads(counts: np.ndarray) -> Iterator[int]:
    """Run Numba on as many threads as torch uses, or on one where there is little to do."""
    import numba

    usual = numba.get_num_threads()
    wanted = torch.get_num_threads() if counts.sum() >= _FEW else 1
    count = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    try:
        yield count
    finally:
        numba.set_num_threads(usual)


def _library() -> ModuleType | None:
    """The kernels, or None where there are none."""
    return None if _forked else _load()


@functools.cache
def _load() -> ModuleType | None:
    if (
        np is None
        or os.environ.get('GCLIP_NUMBA') == '0'
        or importlib.util.find_spec('numba') is None
    ):
        return None
    try:
        from . import host_kernels

        one = np.ones(1, dtype=np.float32)
        place, count = np.array([one.ctypes.data]), np.ones(1, dtype=np.int64)
        bounds = np.float32(-1), np.float32(0.5)
        cuts = np.array([0, 1])
        host_kernels.scan(place, count, cuts, *bounds, False, np.empty((1, 3)))
        host_kernels.clamp(place, count, *bounds)
        host_kernels.scale(place, count, np.full(1, 0.5))
        if one[0] != 0.25:
            raise RuntimeError(f'half of 1 clamped to 0.5 is {one[0]}')
    except Exception as error:
        warnings.warn(
            f"Numba cannot run gclip_mm's kernels ({type(error).__name__}: {error}); clipping goes "
            'on without them, more slowly. GCLIP_NUMBA=0 silences this',
            stacklevel=2,
        )
        return None
    return host_kernels


def _after_fork() -> None:
    # GNU's OpenMP does not survive a fork: Numba ends the child that uses it again. What only
    # serves to fork processes from, as multiprocessing's fork server, has not used it.
    global _forked
    _forked = _forked or _load.cache_info().currsize > 0


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
