"""The loops of ``HostTensors``, compiled by Numba, which has to be there to import this module.

Each block of elements is read from memory once: its sums are taken, and if it has to be changed it
is still in the core's first cache. Sums within a block are in float32, in as many parts as a vector
register has lanes and more, and from block to block in float64; where a square may have over- or
underflowed, the block is summed again in float64.

Each kernel is a C function of one argument, the address of a :class:`Job`, for several threads to call
at once (:mod:`~gclip_mm.clipping.kernels.host_threads`): each takes part after part of the work
until none is left. Not by Numba's own ``parallel``, which starts threads beside torch's, or sets
how many torch has, for the rest of the process.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

#: Elements taken at a time. A second look at so few costs next to nothing; with four times as many,
#: writing back holds up reading.
BLOCK = 512
#: Distance in bytes between counters that several threads write: each has a cache line of its own.
APART = 64


class Job(ctypes.Structure):
    """The argument of a kernel. An address is that of an array's first element.

    Defined here and not beside the code that fills it: Numba's cache on disk notices changes of
    this file only, and compiled kernels must never see another layout.

    I: number of items. J: number of items to work on. T: threads. P: parts of the work per thread.
    """

    _fields_ = [
        ('items', ctypes.c_int64),  # address of (I,) int64: address of each item, float32 elements
        ('counts', ctypes.c_int64),  # address of (I,) int64: number of elements of each item
        ('order', ctypes.c_int64),  # address of (J,) int64: indices of the items to work on
        ('cuts', ctypes.c_int64),  # address of (T * P + 1,) int64: start of each part in order; J
        ('taken', ctypes.c_int64),  # address of T counters, APART bytes apart: parts taken so far
        ('given', ctypes.c_int64),  # address of the input numbers; shape and dtype: see the kernel
        ('results', ctypes.c_int64),  # address of the output numbers; see the kernel
        ('size', ctypes.c_int64),  # I
        ('threads', ctypes.c_int64),  # T
        ('parts', ctypes.c_int64),  # P
        ('write', ctypes.c_int64),  # not 0: write to the items, in a kernel that has the choice
        ('backwards', ctypes.c_int64),  # not 0: each thread starts with its last part
        ('whoami', ctypes.c_int64),  # address of ``int f(void)``, the index of the calling thread
    ]


# Numba reads a job as int64 (len(_PLACES),); these are the indices of the fields.
_PLACES = {name: place for place, (name, _) in enumerate(Job._fields_)}
_LENGTH = len(_PLACES)
ITEMS, COUNTS, ORDER, CUTS = (_PLACES[name] for name in ('items', 'counts', 'order', 'cuts'))
TAKEN, GIVEN, RESULTS = (_PLACES[name] for name in ('taken', 'given', 'results'))
SIZE, THREADS, PARTS = (_PLACES[name] for name in ('size', 'threads', 'parts'))
WRITE, BACKWARDS, WHOAMI = (_PLACES[name] for name in ('write', 'backwards', 'whoami'))
#: What an item's row of a scan's results holds: the sum of squares before and after, how many
#: elements have changed.
BEFORE, AFTER, CHANGED = range(3)

# Sums may be taken in any order, which is what lets them be vectorised. NaN and inf must stay what
# they are: no 'nnan', no 'ninf'.
_REORDER = {'reassoc', 'contract', 'nsz'}
# What AGC divides by at least.
_LEAST = 1e-6
# Bytes that memory hands over at a time, and that are asked for of the next item at most.
_LINE, _AHEAD = 64, 4096
_ZERO, _ONE = np.float32(0), np.float32(1)
_NO_BITS, _ALL_BUT_SIGN = np.int32(0), np.int32(0x7FFFFFFF)
# Sums of squares between these have lost nothing.
_SMALLEST, _LARGEST = np.float32(1e-30), np.float32(np.finfo(np.float32).max)


def _kept_on_disk(decorator, *arguments, **options):
    """A decorator of Numba's; what it compiles is kept for other processes where there is room."""

    def decorate(function):
        try:
            return decorator(*arguments, cache=True, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's can be written to.
            return decorator(*arguments, **options)(function)

    return decorate


def _pointer_to(kind):
    @intrinsic
    def pointer(typing, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_float32, _float64 = map(_pointer_to, (types.float32, types.float64))
_int32, _int64 = map(_pointer_to, (types.int32, types.int64))


@intrinsic
def _take_next(typing, address):
    """The int64 at the address, which is one more for whoever asks next."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int64)))
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw('add', place, one, 'acq_rel')

    return types.int64(types.int64), generate


@intrinsic
def _call(typing, address):
    """What the C function ``int f(void)`` at the address returns."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        result = builder.call(builder.inttoptr(arguments[0], kind), [])
        return builder.sext(result, ir.IntType(64))

    return types.int64(types.int64), generate


def _prefetcher(write):
    @intrinsic
    def prefetch(typing, address):
        """Have memory, which need not be anybody's, brought to the first cache."""

        def generate(context, builder, signature, arguments):
            byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
            function = builder.module.declare_intrinsic('llvm.prefetch', [byte], kind)
            # Whether it will be written to; to be kept; data.
            flags = [flag(write), flag(3), flag(1)]
            builder.call(function, [builder.inttoptr(arguments[0], byte), *flags])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return prefetch


_prefetch_to_read, _prefetch_to_write = map(_prefetcher, (0, 1))


@_kept_on_disk(njit, fastmath=_REORDER)
def _squares(address, count):
    values = carray(_float32(address), (count,))
    total = _ZERO
    for i in range(count):
        total += values[i] * values[i]
    return total


@_kept_on_disk(njit, fastmath=_REORDER)
def _wide_squares(address, count):
    values = carray(_float32(address), (count,))
    total = 0.0
    for i in range(count):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@_kept_on_disk(njit, fastmath=_REORDER)
def _squares_and_top(address, count):
    """The sum of squares, and the bits of the largest absolute value, which are in its order."""
    values = carray(_float32(address), (count,))
    words = carray(_int32(address), (count,))
    total, top = _ZERO, _NO_BITS
    for i in range(count):
        total += values[i] * values[i]
        word = np.int32(words[i] & _ALL_BUT_SIGN)
        top = word if word > top else top
    return total, top


@_kept_on_disk(njit, fastmath=_REORDER)
def _sums(address, count, low, high):
    values = carray(_float32(address), (count,))
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


@_kept_on_disk(njit, fastmath=_REORDER)
def _wide_sums(address, count, low, high):
    values = carray(_float32(address), (count,))
    before, after = 0.0, 0.0
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        new = high if new > high else new
        before += np.float64(old) * np.float64(old)
        after += np.float64(new) * np.float64(new)
    return before, after


@_kept_on_disk(njit)
def _clamp(address, count, low, high):
    values = carray(_float32(address), (count,))
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        values[i] = high if new > high else new


@_kept_on_disk(njit)
def _scale(address, count, coef):
    values = carray(_float32(address), (count,))
    for i in range(count):
        # A coefficient below the smallest float32 still scales a large gradient to a number.
        values[i] = np.float32(np.float64(values[i]) * coef)


@_kept_on_disk(njit)
def _is_safe(total):
    return total > _SMALLEST and total <= _LARGEST


@_kept_on_disk(njit)
def _measure(address, length):
    total = 0.0
    for start in range(0, length, BLOCK):
        place, count = address + 4 * start, min(BLOCK, length - start)
        found = _squares(place, count)
        total += np.float64(found) if _is_safe(found) else _wide_squares(place, count)
    return total


@_kept_on_disk(njit)
def _scan(address, length, low, high, inside, write, row):
    before, after, changed = 0.0, 0.0, 0.0
    is_quiet = True
    for start in range(0, length, BLOCK):
        place, count = address + 4 * start, min(BLOCK, length - start)
        if is_quiet:
            # Most gradients have little outside, and less to do is done sooner.
            found, top = _squares_and_top(place, count)
            if top <= inside:
                total = np.float64(found) if _is_safe(found) else _wide_squares(place, count)
                before += total
                after += total
                continue
        old, new, found = _sums(place, count, low, high)
        is_quiet = found == 0
        wide_old, wide_new = np.float64(old), np.float64(new)
        if not (_is_safe(old) and _is_safe(new)):
            wide_old, wide_new = _wide_sums(place, count, low, high)
        if write and found > 0 and wide_old < np.inf:
            # Reading would stop for as long as this block is looked at again.
            for line in range(0, 4 * BLOCK, _LINE):
                _prefetch_to_write(place + 8 * BLOCK + line)
            _clamp(place, count, low, high)
        before += wide_old
        after += wide_new
        changed += found
    row[BEFORE], row[AFTER], row[CHANGED] = before, after, changed


@_kept_on_disk(njit)
def _unpacked(job):
    fields = carray(_int64(job), (_LENGTH,))
    cuts = carray(_int64(fields[CUTS]), (fields[THREADS] * fields[PARTS] + 1,))
    order = carray(_int64(fields[ORDER]), (cuts[-1],))
    size = (fields[SIZE],)
    items, counts = carray(_int64(fields[ITEMS]), size), carray(_int64(fields[COUNTS]), size)
    me = _call(fields[WHOAMI]) if fields[THREADS] > 1 else 0
    return fields, cuts, order, items, counts, me


@_kept_on_disk(njit)
def _next_part(fields, me, through):
    """The next part for this thread, of its own or of another's; below 0: none is left.

    ``through``: with how many threads' parts it is through, which is returned as well.
    """
    while through < fields[THREADS]:
        owner = (me + through) % fields[THREADS]
        place = _take_next(fields[TAKEN] + APART * owner)
        if place < fields[PARTS]:
            if fields[BACKWARDS]:
                place = fields[PARTS] - 1 - place
            return owner * fields[PARTS] + place, through
        through += 1
    return -1, through


_kernel = (types.void(types.int64),)


@_kept_on_disk(cfunc, *_kernel)
def measure(job):
    """Sums of squares over each item. ``RESULTS``: (I,) float64."""
    fields, cuts, order, items, counts, me = _unpacked(job)
    results = carray(_float64(fields[RESULTS]), (fields[SIZE],))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            results[i] = _measure(items[i], counts[i])
        part, through = _next_part(fields, me, through)


@_kept_on_disk(cfunc, *_kernel)
def scan(job):
    """Sums over each item, and their clamped values in place if ``WRITE`` is not 0.

    A block with an element that is not finite is left as it is. ``GIVEN``: (3,) float32, the lower
    and upper end of the range, and a size up to which elements of either sign are inside; below 0:
    there is none. ``RESULTS``: (I, 3) float64, see ``BEFORE``.
    """
    fields, cuts, order, items, counts, me = _unpacked(job)
    low, high, _ = carray(_float32(fields[GIVEN]), (3,))
    inside = carray(_int32(fields[GIVEN]), (3,))[2]
    results = carray(_float64(fields[RESULTS]), (fields[SIZE], 3))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            _scan(items[i], counts[i], low, high, inside, fields[WRITE] != 0, results[i])
        part, through = _next_part(fields, me, through)


@_kept_on_disk(cfunc, *_kernel)
def clamp(job):
    """Clamp the items in place; ``GIVEN``: (2,) float32, the lower and upper end of the range."""
    fields, cuts, order, items, counts, me = _unpacked(job)
    low, high = carray(_float32(fields[GIVEN]), (2,))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            _clamp(items[i], counts[i], low, high)
        part, through = _next_part(fields, me, through)


@_kept_on_disk(cfunc, *_kernel)
def scale(job):
    """Multiply each item in place by its coefficient. ``GIVEN``: (I,) float64."""
    fields, cuts, order, items, counts, me = _unpacked(job)
    coefs = carray(_float64(fields[GIVEN]), (fields[SIZE],))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            _scale(items[i], counts[i], coefs[i])
        part, through = _next_part(fields, me, through)


@_kept_on_disk(cfunc, *_kernel)
def limit(job):
    """Sums over the items to be done and their counterparts, which lie half the table further on.

    An item whose norm is above its limit is scaled to it in place, unless it is not finite.
    ``GIVEN``: (2,) float64: the limit is the second times the counterpart's norm, or times the
    first where that is larger. ``RESULTS``: (I,) float64, the sums of squares as they were.
    """
    fields, cuts, order, items, counts, me = _unpacked(job)
    eps, factor = carray(_float64(fields[GIVEN]), (2,))
    results = carray(_float64(fields[RESULTS]), (fields[SIZE],))
    half = fields[SIZE] // 2
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            results[half + i] = _measure(items[half + i], counts[i])
            results[i] = _measure(items[i], counts[i])
            weight, norm = np.sqrt(results[half + i]), np.sqrt(results[i])
            # Compared so that NaN stays NaN, above which nothing is.
            bound = factor * (eps if weight < eps else weight)
            if norm > bound and norm < np.inf:
                if k + 1 < cuts[part + 1]:
                    # Reading would stop for as long as this item is looked at again.
                    after = half + order[k + 1]
                    for line in range(0, min(4 * counts[after], _AHEAD), _LINE):
                        _prefetch_to_read(items[after] + line)
                _scale(items[i], counts[i], bound / max(norm, _LEAST))
        part, through = _next_part(fields, me, through)
