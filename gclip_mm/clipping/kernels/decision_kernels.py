"""The kernels that decide, in Triton, which has to be there to import this module.

One program, for a step's worth of single numbers. Each kernel is a rule's ``decide`` between the
same two ends: :func:`_total` takes the norms of the gradients together, and :func:`_hand_over`
writes what the optimizer and the log get. All arithmetic is in float64, as where torch's operators
do it on a device, and comes to the same numbers for a gradient that is not finite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .orders import joint_norm, number

#: Numbers that the program takes at a time.
BLOCK = 1024
#: Arguments whose values say nothing about the code to be built.
_PLAIN = ['count', 'order', 'max_norm', 'min_norm', 'alpha', 'z_threshold', 'warmup', 'fraction']
_PLAIN += ['window']


@triton.jit
def _total(
    norms,
    count,
    order,
    scale,
    scaler_inf,
    KIND: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_INF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The norm of everything, without the loss scale, and whether the step is a finite one."""
    norm = joint_norm(norms, count, order, KIND, '', BLOCK)
    if HAS_SCALE:
        norm = norm / tl.load(scale).to(tl.float64)
    finite = norm < float('inf')
    if HAS_INF:
        finite = finite & (tl.load(scaler_inf).to(tl.float64) == 0.0)
    return norm, finite


@triton.jit
def _hand_over(norm, coef, threshold, finite, scale, fold, record, HAS_SCALE: tl.constexpr):
    divisor = 1.0 / coef
    if HAS_SCALE:
        divisor = divisor * tl.load(scale).to(tl.float64)
    nonfinite = tl.where(finite, 0.0, 1.0)
    tl.store(fold, divisor.to(tl.float32))
    tl.store(fold + 1, nonfinite.to(tl.float32))
    tl.store(record, norm)
    tl.store(record + 1, norm * coef)
    tl.store(record + 2, coef)
    tl.store(record + 3, threshold)
    tl.store(record + 4, tl.where(coef < 1.0, 1.0, 0.0).to(tl.float64))
    tl.store(record + 5, nonfinite.to(tl.float64))


@triton.jit(do_not_specialize=_PLAIN)
def norm_clip(
    norms,
    count,
    order,
    scale,
    scaler_inf,
    fold,
    record,
    max_norm,
    min_norm,
    KIND: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_INF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    norm, finite = _total(norms, count, order, scale, scaler_inf, KIND, HAS_SCALE, HAS_INF, BLOCK)
    most, least = number(max_norm), number(min_norm)
    coef = most / (norm + 1e-6)
    # Compared so that NaN stays NaN.
    coef = tl.where(coef > 1.0, 1.0, coef)
    lift = least / norm
    lift = tl.where(lift > 3.4028234663852886e38, 3.4028234663852886e38, lift)
    coef = tl.where(norm < least, tl.where(norm > 0.0, lift, 1.0), coef)
    _hand_over(norm, coef, most, finite, scale, fold, record, HAS_SCALE)


@triton.jit(do_not_specialize=_PLAIN)
def zclip(
    norms,
    count,
    order,
    scale,
    scaler_inf,
    fold,
    record,
    seen,
    mean,
    var,
    alpha,
    z_threshold,
    warmup,
    max_norm,
    KIND: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_INF: tl.constexpr,
    BLOCK: tl.constexpr,
    MODE: tl.constexpr,
):
    steps, m, v = tl.load(seen), tl.load(mean), tl.load(var)
    norm, finite = _total(norms, count, order, scale, scaler_inf, KIND, HAS_SCALE, HAS_INF, BLOCK)
    a, z, bound = number(alpha), number(z_threshold), number(max_norm)
    warming = steps < warmup
    std = tl.sqrt(v)
    excess = norm - m
    spike = (excess > z * std) & (steps >= warmup)
    if MODE == 'reciprocal':
        allowed = m + z * z * v / tl.where(spike, excess, 1.0)
    elif MODE == 'mean':
        allowed = m
    else:
        allowed = m + z * std
    allowed = tl.where(spike, allowed, norm)

    step = tl.where(warming, 1.0 / (steps + 1).to(tl.float64), 1.0 - a)
    new_mean = m + step * (allowed - m)
    about = tl.where(warming, m, new_mean)
    new_var = (1.0 - step) * v + step * (allowed - about) * (allowed - new_mean)

    threshold = tl.where(warming, float('inf'), m + z * std)
    threshold = tl.where(spike, allowed, threshold)
    threshold = tl.where(threshold > bound, bound, threshold)
    coef = tl.where(norm > threshold, threshold / tl.where(norm > 0.0, norm, 1.0), 1.0)
    _hand_over(norm, coef, threshold, finite, scale, fold, record, HAS_SCALE)
    # No warp may still be about to read what another has written.
    tl.debug_barrier()
    tl.store(seen, steps + 1, mask=finite)
    tl.store(mean, new_mean, mask=finite)
    tl.store(var, new_var, mask=finite)


@triton.jit
def _keys(history, start, window, place, norm, BLOCK: tl.constexpr):
    """Part of the history, the new norm in its place, as integers in the order of the numbers."""
    places = start + tl.arange(0, BLOCK)
    inside = places < window
    values = tl.load(history + places, mask=inside, other=0.0)
    values = tl.where(places == place, norm, values)
    # The bits of numbers that are not negative are in their order, +inf and NaN after all others.
    keys = values.to(tl.int64, bitcast=True)
    return tl.where(inside, keys, 0x7FFFFFFFFFFFFFFF)


@triton.jit(do_not_specialize=_PLAIN)
def autoclip(
    norms,
    count,
    order,
    scale,
    scaler_inf,
    fold,
    record,
    history,
    seen,
    window,
    fraction,
    KIND: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_INF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    steps = tl.load(seen)
    norm, finite = _total(norms, count, order, scale, scaler_inf, KIND, HAS_SCALE, HAS_INF, BLOCK)
    # Any other NaN would not be the last in the order of the bits.
    norm = tl.where(norm == norm, norm, float('nan'))
    place = steps % window
    known = tl.minimum(steps + 1, window)
    rank = number(fraction) * (known - 1).to(tl.float64)
    below = rank.to(tl.int64)
    above = tl.minimum(below + 1, known - 1)

    # The number of rank ``below``, three bits at a time from the top: ``found`` is the largest key
    # with no more than that many below it, as far as its bits are known.
    found = tl.zeros([1], dtype=tl.int64)
    digits = tl.arange(0, 8).to(tl.int64)
    shift = 60
    while shift >= 0:
        edges = found + (digits << shift)
        lower = tl.zeros([8], dtype=tl.int64)
        for start in range(0, window, BLOCK):
            keys = _keys(history, start, window, place, norm, BLOCK)
            lower += tl.sum((keys[:, None] < edges[None, :]).to(tl.int64), axis=0)
        digit = tl.sum((lower <= below).to(tl.int64), axis=0) - 1
        found += digit << shift
        shift -= 3
    low = tl.sum(found, axis=0)

    # The next in order: the same number again, or the smallest above it.
    up_to = tl.zeros([BLOCK], dtype=tl.int64)
    beyond = tl.full([BLOCK], 0x7FFFFFFFFFFFFFFF, dtype=tl.int64)
    for start in range(0, window, BLOCK):
        keys = _keys(history, start, window, place, norm, BLOCK)
        up_to += (keys <= low).to(tl.int64)
        beyond = tl.minimum(beyond, tl.where(keys > low, keys, 0x7FFFFFFFFFFFFFFF))
    high = tl.where(tl.sum(up_to, axis=0) > above, low, tl.min(beyond, axis=0))

    a = low.to(tl.float64, bitcast=True)
    b = high.to(tl.float64, bitcast=True)
    threshold = a + (rank - below.to(tl.float64)) * (b - a)
    coef = tl.where(norm > threshold, threshold / tl.where(norm > 0.0, norm, 1.0), 1.0)
    _hand_over(norm, coef, threshold, finite, scale, fold, record, HAS_SCALE)
    tl.debug_barrier()
    tl.store(history + place, norm, mask=finite)
    tl.store(seen, steps + 1, mask=finite)
