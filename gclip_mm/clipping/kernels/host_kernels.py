"""Numba kernels of ``HostTensors``; importing needs Numba.

Each block of elements is read from memory once. Its sums are taken, and if it has to be changed it
is still in the L1 cache. Sums within a block are in float32, in one partial sum for each lane of a
vector register or more; sums of blocks are in float64. A block whose squares may have overflowed or
underflowed is summed again in float64.

Each kernel is a C function of one argument, the address of a :class:`Job`. Several threads call it
at once (:mod:`~gclip_mm.clipping.kernels.host_threads`), and each takes part after part of the work
until none is left. Numba's ``parallel`` is not used: it either starts threads beside torch's or
changes the number of torch's threads for the rest of the process.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, attr-defined"
# mypy: disable-error-code="import-untyped, import-not-found, var-annotated"
# Numba infers the types of the functions it compiles, and calls an intrinsic without its first
# argument; llvmlite has no stubs.

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

#: Elements of a block. A second read of so few costs almost nothing. With four times as many,
#: writing back slows down reading.
BLOCK = 512
#: Bytes between counters that several threads write, so that each has its own cache line.
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
_PLACES = {name: place for place, name in enumerate(field[0] for field in Job._fields_)}
_LENGTH = len(_PLACES)
ITEMS, COUNTS, ORDER, CUTS = (_PLACES[name] for name in ('items', 'counts', 'order', 'cuts'))
TAKEN, GIVEN, RESULTS = (_PLACES[name] for name in ('taken', 'given', 'results'))
SIZE, THREADS, PARTS = (_PLACES[name] for name in ('size', 'threads', 'parts'))
WRITE, BACKWARDS, WHOAMI = (_PLACES[name] for name in ('write', 'backwards', 'whoami'))
#: Kinds of :func:`update`: how the movement follows from the weights and the other items.
DIFFERENCE, RATIO, ROOT_RATIO = range(3)
#: Columns of a row that :func:`update` is given.
RATE, EPS, DECAY, KEEP = range(4)
#: Columns of the results of :func:`scan`: sum of squares before and after clamping, number of
#: changed elements.
BEFORE, AFTER, CHANGED = range(3)

# Vectorized sums need any order of summation. NaN and inf must be kept: no 'nnan', no 'ninf'.
_REORDER = {'reassoc', 'contract', 'nsz'}
# Lower bound of the norm that :func:`limit` divides by, as in rules/agc.py, ``AGC.decide``.
_LEAST = 1e-6
# Bytes of a cache line, and most bytes that are prefetched of the next item.
_LINE, _AHEAD = 64, 4096
_ZERO, _ONE = np.float32(0), np.float32(1)
_NO_BITS, _ALL_BUT_SIGN = np.int32(0), np.int32(0x7FFFFFFF)
# Float32 sums of squares in this range have neither overflowed nor lost underflowed squares.
_SMALLEST, _LARGEST = np.float32(1e-30), np.float32(np.finfo(np.float32).max)


def _cached(decorator, *arguments, **options):
    """A decorator of Numba with its cache on disk, where a folder for it is writable."""

    def decorate(function):
        try:
            return decorator(*arguments, cache=True, **options)(function)
        except RuntimeError:
            # Neither the folder of the package nor that of the user is writable.
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
    """Atomically add 1 to the int64 at the address; returns the value before."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int64)))
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw('add', place, one, 'acq_rel')

    return types.int64(types.int64), generate


@intrinsic
def _call(typing, address):
    """Call the C function ``int f(void)`` at the address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        result = builder.call(builder.inttoptr(arguments[0], kind), [])
        return builder.sext(result, ir.IntType(64))

    return types.int64(types.int64), generate


def _prefetcher(write):
    @intrinsic
    def prefetch(typing, address):
        """Prefetch an address to the L1 cache; it need not be mapped."""

        def generate(context, builder, signature, arguments):
            byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
            function = builder.module.declare_intrinsic('llvm.prefetch', [byte], kind)
            # For writing or not; keep in all cache levels; data cache.
            flags = [flag(write), flag(3), flag(1)]
            builder.call(function, [builder.inttoptr(arguments[0], byte), *flags])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return prefetch


_prefetch_to_read, _prefetch_to_write = map(_prefetcher, (0, 1))


@_cached(njit, fastmath=_REORDER)
def _squares(address, count):
    values = carray(_float32(address), (count,))
    total = _ZERO
    for i in range(count):
        total += values[i] * values[i]
    return total


@_cached(njit, fastmath=_REORDER)
def _wide_squares(address, count):
    values = carray(_float32(address), (count,))
    total = 0.0
    for i in range(count):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@_cached(njit, fastmath=_REORDER)
def _squares_and_top(address, count):
    """Sum of squares, and bits of the largest absolute value; bits sort like absolute values."""
    values = carray(_float32(address), (count,))
    words = carray(_int32(address), (count,))
    total, top = _ZERO, _NO_BITS
    for i in range(count):
        total += values[i] * values[i]
        word = np.int32(words[i] & _ALL_BUT_SIGN)
        top = word if word > top else top
    return total, top


@_cached(njit, fastmath=_REORDER)
def _sums(address, count, low, high):
    values = carray(_float32(address), (count,))
    before, after, changed = _ZERO, _ZERO, _ZERO
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        new = high if new > high else new
        before += old * old
        after += new * new
        # A float32 counts a block exactly. An integer would prevent vectorization.
        changed += _ONE if old != new else _ZERO
    return before, after, changed


@_cached(njit, fastmath=_REORDER)
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


@_cached(njit)
def _clamp(address, count, low, high):
    values = carray(_float32(address), (count,))
    for i in range(count):
        old = values[i]
        new = low if old < low else old
        values[i] = high if new > high else new


@_cached(njit)
def _scale(address, count, coef):
    values = carray(_float32(address), (count,))
    for i in range(count):
        # In float64: a coefficient may be too small for float32 and its product not.
        values[i] = np.float32(np.float64(values[i]) * coef)


@_cached(njit)
def _is_safe(total):
    return total > _SMALLEST and total <= _LARGEST


@_cached(njit)
def _measure(address, length):
    total = 0.0
    for start in range(0, length, BLOCK):
        place, count = address + 4 * start, min(BLOCK, length - start)
        found = _squares(place, count)
        total += np.float64(found) if _is_safe(found) else _wide_squares(place, count)
    return total


@_cached(njit)
def _scan(address, length, low, high, inside, write, row):
    before, after, changed = 0.0, 0.0, 0.0
    is_quiet = True
    for start in range(0, length, BLOCK):
        place, count = address + 4 * start, min(BLOCK, length - start)
        if is_quiet:
            # Cheaper, and enough while no element is outside the range, as in most blocks.
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
            # Keeps memory busy during the second pass over this block.
            for line in range(0, 4 * BLOCK, _LINE):
                _prefetch_to_write(place + 8 * BLOCK + line)
            _clamp(place, count, low, high)
        before += wide_old
        after += wide_new
        changed += found
    row[BEFORE], row[AFTER], row[CHANGED] = before, after, changed


@_cached(njit)
def _unpacked(job):
    fields = carray(_int64(job), (_LENGTH,))
    cuts = carray(_int64(fields[CUTS]), (fields[THREADS] * fields[PARTS] + 1,))
    order = carray(_int64(fields[ORDER]), (cuts[-1],))
    size = (fields[SIZE],)
    items, counts = carray(_int64(fields[ITEMS]), size), carray(_int64(fields[COUNTS]), size)
    me = _call(fields[WHOAMI]) if fields[THREADS] > 1 else 0
    return fields, cuts, order, items, counts, me


@_cached(njit)
def _next_part(fields, me, through):
    """The next part for thread ``me``: one of its own, then one of another thread's.

    Returns:
        The part, negative if none is left, and ``through``: how many threads have no parts left.
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


@_cached(cfunc, *_kernel)
def measure(job):
    """Sum of squares of each item. ``results``: (I,) float64."""
    fields, cuts, order, items, counts, me = _unpacked(job)
    results = carray(_float64(fields[RESULTS]), (fields[SIZE],))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            results[i] = _measure(items[i], counts[i])
        part, through = _next_part(fields, me, through)


@_cached(cfunc, *_kernel)
def scan(job):
    """Sums over each item before and after clamping; clamps in place if ``write`` is not 0.

    A block with a non-finite element is not changed. ``given``: (3,) float32: lower end, upper end,
    and the largest absolute value that is inside the range for both signs; negative: none.
    ``results``: (I, 3) float64, see ``BEFORE``.
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


@_cached(cfunc, *_kernel)
def clamp(job):
    """Clamp the items in place. ``given``: (2,) float32, lower and upper end of the range."""
    fields, cuts, order, items, counts, me = _unpacked(job)
    low, high = carray(_float32(fields[GIVEN]), (2,))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            _clamp(items[i], counts[i], low, high)
        part, through = _next_part(fields, me, through)


@_cached(cfunc, *_kernel)
def scale(job):
    """Multiply each item in place by its coefficient. ``given``: (I,) float64."""
    fields, cuts, order, items, counts, me = _unpacked(job)
    coefs = carray(_float64(fields[GIVEN]), (fields[SIZE],))
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            _scale(items[i], counts[i], coefs[i])
        part, through = _next_part(fields, me, through)


@_cached(cfunc, *_kernel)
def limit(job):
    """Scale each item down to its limit, in place; the formula of rules/agc.py, ``AGC.decide``.

    Items 0 to I/2 - 1 are gradients; item I/2 + i holds the weights of item i. An item whose norm
    is above ``factor * max(norm of its weights, eps)`` is scaled to it, unless the norm is not
    finite. ``given``: (2,) float64: eps, factor. ``results``: (I,) float64, sums of squares before
    scaling.
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
            # This order of comparison keeps NaN, and no norm is above NaN.
            bound = factor * (eps if weight < eps else weight)
            if norm > bound and norm < np.inf:
                if k + 1 < cuts[part + 1]:
                    # Keeps memory busy during the second pass over this item.
                    after = half + order[k + 1]
                    for line in range(0, min(4 * counts[after], _AHEAD), _LINE):
                        _prefetch_to_read(items[after] + line)
                _scale(items[i], counts[i], bound / max(norm, _LEAST))
        part, through = _next_part(fields, me, through)


# A check of each divisor would prevent vectorization.
@_cached(njit, fastmath=_REORDER, error_model='numpy')
def _movement(kind, places, start, count, row, moved):
    """Write what a step has added to a block of weights to ``moved``."""
    new = carray(_float32(places[0] + 4 * start), (count,))
    first = carray(_float32(places[1] + 4 * start), (count,))
    if kind == DIFFERENCE:
        for i in range(count):
            moved[i] = new[i] - first[i]
        return
    second = carray(_float32(places[2] + 4 * start), (count,))
    rate, eps, decay = np.float32(row[RATE]), np.float32(row[EPS]), np.float32(row[DECAY])
    if kind == RATIO:
        for i in range(count):
            moved[i] = rate * first[i] / (second[i] + eps) + decay * new[i]
    else:
        for i in range(count):
            moved[i] = rate * first[i] / (np.sqrt(second[i]) + eps) + decay * new[i]


@_cached(njit)
def _shorten(kind, places, start, count, keep, moved):
    """Keep a share of the movement of a block of weights."""
    new = carray(_float32(places[0] + 4 * start), (count,))
    keep = np.float32(keep)
    if kind == DIFFERENCE:
        # From the copy: a movement much larger than the weights has lost their last digits.
        old = carray(_float32(places[1] + 4 * start), (count,))
        for i in range(count):
            # An infinite movement times 0 is NaN.
            new[i] = old[i] + keep * moved[i] if keep > 0 else old[i]
        return
    for i in range(count):
        new[i] -= (_ONE - keep) * moved[i]


@_cached(cfunc, *_kernel)
def update(job):
    """Sum of squares of what a step has added to each item; shortens it if ``write`` is not 0.

    Items 0 to n - 1 are weights after the step. Item n + i belongs to item i: the weights before
    the step (DIFFERENCE), or the dividend of the movement, and 2 * n + i its divisor (RATIO) or the
    square of it (ROOT_RATIO). ``given``: (1 + 4 * n,) float64: the kind, then the row of each item,
    see ``RATE``. ``results``: (n,) float64, not written when shortening.
    """
    fields, cuts, order, items, counts, me = _unpacked(job)
    kind = np.int64(carray(_float64(fields[GIVEN]), (1,))[0])
    size = fields[SIZE] // (2 if kind == DIFFERENCE else 3)
    rows = carray(_float64(fields[GIVEN] + 8), (size, 4))
    results = carray(_float64(fields[RESULTS]), (size,))
    # The movement of a block stays in the L1 cache.
    moved = np.empty(BLOCK, np.float32)
    address = moved.ctypes.data
    places = np.zeros(3, np.int64)
    part, through = _next_part(fields, me, 0)
    while part >= 0:
        for k in range(cuts[part], cuts[part + 1]):
            i = order[k]
            for j in range(fields[SIZE] // size):
                places[j] = items[j * size + i]
            total = 0.0
            for start in range(0, counts[i], BLOCK):
                count = min(BLOCK, counts[i] - start)
                _movement(kind, places, start, count, rows[i], moved)
                if fields[WRITE] != 0:
                    _shorten(kind, places, start, count, rows[i][KEEP], moved)
                else:
                    found = _squares(address, count)
                    total += found if _is_safe(found) else _wide_squares(address, count)
            if fields[WRITE] == 0:
                results[i] = total
        part, through = _next_part(fields, me, through)
