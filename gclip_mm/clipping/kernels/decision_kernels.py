"""Triton kernels that decide; importing needs Triton.

Each kernel is one program and computes the formula of one rule's ``decide``. :func:`_total` before
it combines the norms of the gradients, and :func:`_hand_over` after it writes what the optimizer
and the log get. All arithmetic is in float64, as that of torch's operators on a device, and gives
the same results for gradients that are not finite.

Arguments that all kernels have:
    norms: (N,) float32 or float64, p-norms of the gradients, with the loss scale.
    count: N.
    order: bits of p (:func:`~gclip_mm.clipping.kernels.orders.bits_of`).
    scale: 0-d, the loss scale; read if ``HAS_SCALE``.
    scaler_inf: 0-d, not 0 where a GradScaler has found an infinite gradient; read if ``HAS_INF``.
    fold: (2,) float32, written: divisor of the gradients, ``found_inf``.
    record: (6,) float64, written (:mod:`gclip_mm.clipping.step.record`).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
# Triton has no stubs, and the types of a kernel's arguments are Triton's.

from __future__ import annotations

import triton
import triton.language as tl

from .orders import joint_norm, number

#: Numbers that the program loads at a time.
BLOCK = 1024
#: Arguments on whose values Triton must not specialize the code: schedules change them.
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
    """The norm of all gradients, without the loss scale, and whether the step is finite."""
    norm = joint_norm(norms, count, order, KIND, '', BLOCK)
    if HAS_SCALE:
        norm = norm / tl.load(scale).to(tl.float64)
    finite = norm < float('inf')
    if HAS_INF:
        finite = finite & (tl.load(scaler_inf).to(tl.float64) == 0.0)
    return norm, finite


@triton.jit
def _hand_over(norm, coef, threshold, finite, scale, fold, record, HAS_SCALE: tl.constexpr):
    """Write ``fold`` and ``record``."""
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
    """Compute the same formula as ``NormClip.decide`` in rules/norm_clip.py."""
    norm, finite = _total(norms, count, order, scale, scaler_inf, KIND, HAS_SCALE, HAS_INF, BLOCK)
    most, least = number(max_norm), number(min_norm)
    coef = most / (norm + 1e-6)
    # This order of comparison keeps NaN.
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
    """Compute the same formula as ``ZClip.decide`` in rules/zclip.py."""
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
    # All warps must have read the old state before one of them writes.
    tl.debug_barrier()
    tl.store(seen, steps + 1, mask=finite)
    tl.store(mean, new_mean, mask=finite)
    tl.store(var, new_var, mask=finite)


@triton.jit
def _keys(history, start, window, place, norm, BLOCK: tl.constexpr):
    """``BLOCK`` norms of the history, the new one included, as int64 keys that sort like them."""
    places = start + tl.arange(0, BLOCK)
    inside = places < window
    values = tl.load(history + places, mask=inside, other=0.0)
    values = tl.where(places == place, norm, values)
    # The bits of non-negative floats sort like the floats, then +inf, then NaN.
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
    """Compute the same formula as ``AutoClip.decide`` in rules/autoclip.py."""
    steps = tl.load(seen)
    norm, finite = _total(norms, count, order, scale, scaler_inf, KIND, HAS_SCALE, HAS_INF, BLOCK)
    # A NaN with the sign bit set would not sort last.
    norm = tl.where(norm == norm, norm, float('nan'))
    place = steps % window
    known = tl.minimum(steps + 1, window)
    rank = number(fraction) * (known - 1).to(tl.float64)
    below = rank.to(tl.int64)
    above = tl.minimum(below + 1, known - 1)

    # Radix selection of the key with rank ``below``, three bits at a time from the top: ``found``
    # is the largest prefix with at most ``below`` keys under it.
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

    # The key of rank ``above``: the same key if it repeats, else the smallest larger one.
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
