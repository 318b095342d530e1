"""The loops of ``HostTensors``, compiled by Numba, which has to be there to import this module.

Each block of elements is read from memory once: its sums are taken, and if it has to be changed it
is still in the core's first cache. Sums within a block are in float32, in as many parts as a vector
register has lanes and more, and from block to block in float64; where a square may have over- or
underflowed, the block is summed again in float64.
"""

from __future__ import annotations

import contextlib

import numba
import numpy as np
from numba import carray, njit, prange, types
from numba.extending import intrinsic

#: Elements that are taken at a time: 8 KiB, so that a second look at them costs next to nothing.
BLOCK = 2048
#: What an item's row of the results holds: the sum of squares before and after, how many changed.
BEFORE, AFTER, CHANGED = range(3)

# Sums may be taken in any order, which is what lets them be vectorised. NaN and inf must stay what
# they are: no 'nnan', no 'ninf'.
_REORDER = {'reassoc', 'contract', 'nsz'}
_ZERO, _ONE = np.float32(0), np.float32(1)
# Sums of squares between these have lost nothing.
_SMALLEST, _LARGEST = np.float32(1e-30), np.float32(np.finfo(np.float32).max)


def _compiled(**options):
    """``numba.njit``, kept on disk from one process to the next where there is a place for it."""

    def compiled(function):
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's can be written to.
            return njit(**options)(function)

    return compiled


@intrinsic
def _pointer(typing, address):
    """The address, an integer, as a pointer to float32."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@_compiled(nogil=True, fastmath=_REORDER)
def _sums(address, count, low, high):
    values = carray(_pointer(address), (count,))
    before, after, changed = _ZERO, _ZERO, _ZERO
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        new = high if new > high else new
        before += old * old
        after += new * new
        # As a float, in which a block's count is exact: mixed types would not be vectorised.
        changed += _ONE if old != new else _ZERO
    return before, after, changed


@_compiled(nogil=True, fastmath=_REORDER)
def _wide_sums(address, count, low, high):
    values = carray(_pointer(address), (count,))
    before, after = 0.0, 0.0
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        new = high if new > high else new
        before += np.float64(old) * np.float64(old)
        after += np.float64(new) * np.float64(new)
    return before, after


@_compiled(nogil=True)
def _scale(address, count, coef):
    values = carray(_pointer(address), (count,))
    for i in range(count):
        # A coefficient below the smallest float32 still scales a large gradient to a number.
        values[i] = np.float32(np.float64(values[i]) * coef)


@_compiled(nogil=True)
def _clamp(address, count, low, high):
    values = carray(_pointer(address), (count,))
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        values[i] = high if new > high else new


@_compiled(nogil=True)
def _is_safe(total):
    return total > _SMALLEST and total <= _LARGEST


@_compiled(parallel=True)
def scale(addresses, counts, coefs):
    """Multiply each item in place by its coefficient (I,) float64."""
    for i in prange(len(addresses)):
        _scale(addresses[i], counts[i], coefs[i])


@_compiled(parallel=True)
def scan(addresses, counts, cuts, low, high, write, results):
    """Sums over each of I items, and their clamped values in place if asked for.

    Args:
        addresses: (I,) int64, where the items begin: each a run of float32 in memory.
        counts: (I,) int64, elements of each.
        cuts: (T + 1,) int64: thread t takes the items from ``cuts[t]`` on, up to ``cuts[t + 1]``.
        low: float32, lower end of the range.
        high: float32, upper end of the range.
        write: whether to write the clamped values. A block with an element that is not finite is
            left as it is.
        results: (I, 3) float64, written: see ``BEFORE``.
    """
    for t in prange(len(cuts) - 1):
        for i in range(cuts[t], cuts[t + 1]):
            before, after, changed = 0.0, 0.0, 0.0
            for start in range(0, counts[i], BLOCK):
                count = min(BLOCK, counts[i] - start)
                place = addresses[i] + 4 * start
                old, new, found = _sums(place, count, low, high)
                wide_old, wide_new = np.float64(old), np.float64(new)
                if not (_is_safe(old) and _is_safe(new)):
                    wide_old, wide_new = _wide_sums(place, count, low, high)
                if write and found > 0 and wide_old < np.inf:
                    _clamp(place, count, low, high)
                before += wide_old
                after += wide_new
                changed += found
            results[i, BEFORE] = before
            results[i, AFTER] = after
            results[i, CHANGED] = changed


@_compiled(parallel=True)
def clamp(addresses, counts, low, high):
    """Clamp the items in place; arguments as :func:`scan` has them."""
    for i in prange(len(addresses)):
        _clamp(addresses[i], counts[i], low, high)


# GNU's OpenMP is also what torch computes with. After an operation its threads go on spinning for a
# while, ready for the next one: this way they are the ones that get it, instead of being in the way
# of threads of Numba's own. A layer that has been chosen otherwise is left.
if numba.config.THREADING_LAYER == 'default':
    with contextlib.suppress(ImportError):
        from numba.np.ufunc import omppool  # noqa: F401  not there where it was built without OpenMP

        numba.config.THREADING_LAYER = 'omp'
