"""Sharing work out among the threads that PyTorch computes with.

PyTorch cuts a large tensor into a stretch for each thread, of 32768 elements or more, the first for
the first thread. Here each thread begins with the same stretches: on one machine, scaling by
PyTorch took twice as long after a pass in which any thread took any part (results/benchmark; that
cores wait for each other's caches is a guess). Who is through with its own takes over what others
have not begun.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch

from ..host import np

#: Another thread is worth waking for this many elements, as for PyTorch.
FEW = 1 << 15
# Parts for each thread: several, so that another can take over some.
_EACH = 16


class Shares(NamedTuple):
    """Who does what.

    Attributes:
        order: (J,) int64, the items that there is something to do for, those of each thread
            together.
        cuts: (threads * parts + 1,) int64, where in ``order`` the parts begin, and behind the last
            its length.
        threads: how many threads.
    """

    order: np.ndarray
    cuts: np.ndarray
    threads: int


class Crew:
    """Shares items out: among threads by where they lie, and a thread's evenly among its parts.

    Args:
        tensors: (I,) int64, the number of the tensor that each item is of.
        offsets: (I,) int64, elements before it in that.
        counts: (I,) int64, elements of each item.
        sizes: elements of each tensor.
    """

    def __init__(
        self, tensors: np.ndarray, offsets: np.ndarray, counts: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._counts = counts
        middles, own = offsets + counts // 2, sizes[tensors]
        before = np.concatenate([[0], np.cumsum(sizes)])
        # Tensors too small to be cut go by where they come among all.
        self._is_small = own < FEW
        everywhere = (before[tensors] + middles) / max(before[-1], 1)
        # Where the middle of an item is, from 0 to below 1.
        self._places = np.where(self._is_small, everywhere, middles / np.maximum(own, 1))
        self._most = -(-own // FEW)
        self._plans: dict[int, tuple[np.ndarray, Shares]] = {}

    def shares(self, chosen: np.ndarray | None = None) -> Shares:
        """For as many threads as PyTorch uses now.

        Args:
            chosen: (I,) bool, the items that there is something to do for; None: all.
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
    """Have a kernel do a job; see ``host_kernels.Job``.

    Args:
        kernel: one of ``host_kernels``.
        shares: who does what.
        items: (I,) int64, the address of each item.
        counts: (I,) int64, elements of each.
        given: the numbers in.
        results: the numbers out.
        write: whether the kernel is to write to the items, where it has the choice.
        backwards: whether each thread begins with its last part.
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
        library().GOMP_parallel(kernel.address, ctypes.addressof(job), shares.threads, 0)
    else:
        kernel.ctypes(ctypes.addressof(job))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The OpenMP library that torch computes with, if it is GNU's.

    Its threads go on spinning for a while after each of torch's operations, ready for the next.
    Threads of anybody else's would have to share the cores with them.
    """
    try:
        found = ctypes.CDLL('libgomp.so.1')
        # torch sets it when it is first asked.
        threads = torch.get_num_threads()
        if found.omp_get_max_threads() != threads:
            return None
        arguments = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.GOMP_parallel.argtypes = arguments
        found.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return found


@functools.cache
def _whoami() -> int:
    """The address of the function that tells a thread its number."""
    return ctypes.cast(library().omp_get_thread_num, ctypes.c_void_p).value
