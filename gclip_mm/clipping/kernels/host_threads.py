"""Divides work among the threads that PyTorch computes with.

PyTorch cuts a large tensor into one stretch of at least 32768 elements for each thread, in the
order of the threads. Here each thread starts with the same stretches. On one machine, scaling by
PyTorch took twice as long after a pass in which any thread took any part (results/benchmark); the
cause may be cache coherence between cores. A thread that has finished its own parts takes parts
that other threads have not started.
"""

from __future__ import annotations

import copy
import ctypes
import functools
from typing import Any, NamedTuple

import torch

from ..host import np

#: Elements that justify another thread; the grain size of PyTorch.
FEW = 1 << 15
# Parts for each thread: several, so that other threads can take some.
_EACH = 16


class Shares(NamedTuple):
    """The items that each thread works on.

    Attributes:
        order: (J,) int64, the items to work on, grouped by thread.
        cuts: (threads * parts + 1,) int64, the start of each part in ``order``; the last value is
            J.
        threads: number of threads.
    """

    order: np.ndarray
    cuts: np.ndarray
    threads: int


class Crew:
    """Divides items among threads by their position, and those of a thread evenly into parts.

    Args:
        tensors: (I,) int64, index of the tensor of each item.
        offsets: (I,) int64, elements of that tensor before the item.
        counts: (I,) int64, elements of each item.
        sizes: (tensors,) int64, elements of each tensor.
    """

    def __init__(
        self, tensors: np.ndarray, offsets: np.ndarray, counts: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._counts = counts
        middles, own = offsets + counts // 2, sizes[tensors]
        before = np.concatenate([[0], np.cumsum(sizes)])
        # A tensor too small to be cut counts by its position among all tensors.
        self._is_small = own < FEW
        everywhere = (before[tensors] + middles) / max(before[-1], 1)
        # Relative position of the middle of each item, in [0, 1).
        self._places = np.where(self._is_small, everywhere, middles / np.maximum(own, 1))
        self._most = -(-own // FEW)
        self._plans: dict[int, tuple[np.ndarray, Shares]] = {}

    def restricted(self, keep: np.ndarray) -> Crew:
        """The shares of some items, which stay with their threads.

        Args:
            keep: (I,) bool.
        """
        part = copy.copy(self)
        part._counts, part._is_small = self._counts[keep], self._is_small[keep]
        part._places, part._most = self._places[keep], self._most[keep]
        numbers = np.cumsum(keep) - 1
        part._plans = {}
        self.shares()
        for threads, (owners, everything) in self._plans.items():
            stays = keep[everything.order]
            order, own = numbers[everything.order[stays]], owners[stays]
            part._plans[threads] = own, part._cut(order, own, threads)
        return part

    def shares(self, chosen: np.ndarray | None = None) -> Shares:
        """The shares for the number of threads that PyTorch uses now.

        Args:
            chosen: (I,) bool, the items to work on; None: all.
        """
        threads = torch.get_num_threads()
        if threads not in self._plans:
            stretches = np.where(self._is_small, threads, np.minimum(threads, self._most))
            owners = (self._places * stretches).astype(np.int64)
            order = np.argsort(owners, kind='stable')
            owners = owners[order]
            self._plans[threads] = owners, self._cut(order, owners, threads)
        owners, everything = self._plans[threads]
        if chosen is None:
            return everything
        keep = chosen[everything.order]
        return self._cut(everything.order[keep], owners[keep], threads)

    def _cut(self, order: np.ndarray, owners: np.ndarray, threads: int) -> Shares:
        ends = np.concatenate([[0], np.cumsum(self._counts[order])])
        if threads == 1 or ends[-1] < FEW:
            return Shares(order, np.array([0, len(order)]), 1)
        heads = ends[np.searchsorted(owners, np.arange(threads + 1))]
        begins = heads[:-1, None] + np.diff(heads)[:, None] * np.arange(_EACH) // _EACH
        cuts = np.append(np.searchsorted(ends, begins.ravel()), len(order))
        return Shares(order, cuts.astype(np.int64), threads)


def run(
    kernel: Any,
    shares: Shares,
    items: np.ndarray,
    counts: np.ndarray,
    given: np.ndarray | None = None,
    results: np.ndarray | None = None,
    write: bool = False,
    backwards: bool = False,
) -> None:
    """Run a kernel on all threads; see ``host_kernels.Job``.

    Args:
        kernel: a kernel of ``host_kernels``.
        shares: the items that each thread works on.
        items: (I,) int64, address of each item.
        counts: (I,) int64, elements of each item.
        given: the input numbers of the kernel.
        results: (I, ...) float64, the output numbers of the kernel, written.
        write: write to the items, in a kernel that has the choice.
        backwards: each thread starts with its last part.
    """
    from .host_kernels import APART, Job

    several = shares.threads > 1
    taken = np.zeros((shares.threads, APART // 8), dtype=np.int64)
    job = Job(
        items=items.ctypes.data,
        counts=counts.ctypes.data,
        order=shares.order.ctypes.data,
        cuts=shares.cuts.ctypes.data,
        taken=taken.ctypes.data,
        given=0 if given is None else given.ctypes.data,
        results=0 if results is None else results.ctypes.data,
        size=len(items),
        threads=shares.threads,
        parts=(len(shares.cuts) - 1) // shares.threads,
        write=write,
        backwards=backwards,
        whoami=_whoami() if several else 0,
    )
    if several:
        openmp = library()
        assert openmp is not None, 'without OpenMP no kernel is used'
        openmp.GOMP_parallel(kernel.address, ctypes.addressof(job), shares.threads, 0)
    else:
        kernel.ctypes(ctypes.addressof(job))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The OpenMP library that torch computes with, if it is GNU's, else None.

    Its threads keep spinning for a while after each operation of torch. Threads of another library
    would compete with them for the cores.
    """
    try:
        found = ctypes.CDLL('libgomp.so.1')
        # torch passes its number of threads to OpenMP at the first call of this function.
        threads = torch.get_num_threads()
        if found.omp_get_max_threads() != threads:
            return None
        found.GOMP_parallel.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_uint,
        ]
        found.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return found


@functools.cache
def _whoami() -> int:
    """Address of the C function that returns the index of the calling thread."""
    openmp = library()
    assert openmp is not None, 'without OpenMP no kernel is used'
    address = ctypes.cast(openmp.omp_get_thread_num, ctypes.c_void_p).value
    assert address is not None
    return address
