"""One pass over the gradients in host memory for rules that look at single elements.

PyTorch has no operation that measures, counts and clamps at once, and a pass over memory is what
such a rule costs on a CPU. With `Numba <https://numba.pydata.org>`_ installed (``pip install
gclip-mm[cpu]``) the loops of :mod:`~gclip_mm.clipping.kernels.host_kernels` do, for float32
gradients. Without it, or with ``GCLIP_NUMBA=0`` in the environment, the ordinary path is taken; it
gives the same numbers within rounding, and is what the tests compare with. They are compiled at
first use, which takes some seconds, and kept on disk.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..norms import host, np
from ..rows import in_line

if TYPE_CHECKING:
    from ..routing import GradView

#: Elements of an item at most: enough of them to share out evenly among threads.
_ITEM = 1 << 15
#: Threads are worth waking for this many elements.
_FEW = 1 << 15

# Whether this process was forked off one in which the kernels may have run.
_forked = False


class Scan(NamedTuple):
    """What :meth:`HostTensors.scan` has found in N gradients.

    Attributes:
        norms: (N,) float64, their 2-norms; inf or NaN where an element is.
        posts: (N,) float64, the same of their clamped values.
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
    """Scans and clamps N tensors of float32 in host memory, with the threads that torch uses.

    Each of them is cut into items, which the threads share. What is summed in what order does not
    depend on the number of threads.

    Args:
        sizes: elements of each of the N tensors that :meth:`take` will be given.
    """

    def __init__(self, sizes: list[int]) -> None:
        self._filled = [k for k, size in enumerate(sizes) if size]
        self._size = len(sizes)
        full = np.array([sizes[k] for k in self._filled], dtype=np.int64)
        items = -(-full // _ITEM)
        self._starts = np.concatenate([[0], np.cumsum(items)])[:-1]
        self._of = np.repeat(np.arange(len(full)), items)
        offset = (np.arange(len(self._of)) - self._starts[self._of]) * _ITEM
        self._counts = np.minimum(full[self._of] - offset, _ITEM)
        self._offsets = offset * 4
        self._cuts_for: dict[int, np.ndarray] = {}
        self._results = np.empty((len(self._of), 3))
        self._taken: list[int] = []
        self._addresses = self._offsets

    def take(self, tensors: list[Tensor]) -> bool:
        """Work on these tensors from now on; False: they cannot be worked on.

        They can if all are float32 in host memory, fill a stretch of it each, with the axes in
        whatever order, and share none of it.
        """
        for tensor in tensors:
            if (
                tensor.dtype is not torch.float32
                or type(tensor) is not Tensor
                or tensor.get_device() != -1
                or not (tensor.is_contiguous() or in_line(tensor) is not None)
            ):
                return False
        addresses = [tensors[k].data_ptr() for k in self._filled]
        if addresses != self._taken:
            if len(set(addresses)) < len(addresses):
                return False
            self._taken = addresses
            self._addresses = np.array(addresses, dtype=np.int64)[self._of] + self._offsets
        return True

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
        with _threads(self._counts) as count:
            cuts = self._cuts(count)
            _library().scan(self._addresses, self._counts, cuts, *bounds, write, self._results)
        before, after, changed = self._results.T
        return Scan(
            self._norms(before),
            self._norms(after),
            float(changed.sum()),
            write,
            np.flatnonzero(changed),
            bounds,
        )

    def clamp(self, scan: Scan) -> None:
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

    def _norms(self, squares: np.ndarray) -> Tensor:
        norms = np.zeros(self._size)
        if self._filled:
            norms[self._filled] = np.sqrt(np.add.reduceat(squares, self._starts))
        return torch.from_numpy(norms)


def host_tensors(view: GradView) -> HostTensors | None:
    """The kernels for the gradients of this step; None: take the ordinary path."""
    first = view.grads[0]
    if view.sharding is not None or first.dtype is not torch.float32:
        return None
    if host(first) is None or _library() is None:
        return None
    tensors = view.cache.get('host_tensors')
    if tensors is None:
        sizes = [grad.numel() for grad in view.grads]
        tensors = view.cache['host_tensors'] = HostTensors(sizes)
    return tensors if tensors.take(view.grads) else None


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
        host_kernels.scan(place, count, np.array([0, 1]), *bounds, False, np.empty((1, 3)))
        host_kernels.clamp(place, count, *bounds)
        if one[0] != 0.5:
            raise RuntimeError(f'1 clamped to 0.5 is {one[0]}')
    except Exception as error:
        warnings.warn(
            f"Numba cannot run gclip_mm's kernels ({type(error).__name__}: {error}); clipping goes "
            'on without them, more slowly. GCLIP_NUMBA=0 silences this',
            stacklevel=2,
        )
        return None
    return host_kernels


def _after_fork() -> None:
    # GNU's OpenMP does not survive a fork: Numba ends the child that uses it.
    global _forked
    _forked = True


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
