"""Norms of any order in float64, as Triton functions that kernels call; importing needs Triton.

The norm of the norms of parts is the norm of the whole. So one function combines elements, the
partial results of several programs, and the tensors of a model.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
# Triton has no stubs, and the types of a kernel's arguments are Triton's.

from __future__ import annotations

import math
import struct

import triton
import triton.language as tl

_KINDS = {1.0: 'absolute', 2.0: 'squares', math.inf: 'largest'}


def kind_of(p: float) -> str:
    """The ``KIND`` of :func:`joint_norm` for a norm of order ``p`` > 0."""
    return _KINDS.get(float(p), 'powers')


def bits_of(value: float) -> int:
    """The bits of a float64, to pass it to a kernel, which reads it by :func:`number`.

    Triton would pass a Python float as float32. A tensor would need a copy to the device, one more
    launch, whenever a schedule changes the value.
    """
    bits: int = struct.unpack('q', struct.pack('d', value))[0]
    return bits


@triton.jit
def number(bits):
    """The float64 with these bits (:func:`bits_of`)."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def joint_norm(base, count, order, KIND: tl.constexpr, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """Norm of ``count`` contiguous numbers, float64; 0 if there are none; inf or NaN if one is.

    Args:
        base: pointer to the first number.
        count: how many numbers.
        order: bits of the order p; used by the kind ``'powers'`` only.
        KIND: see :func:`kind_of`.
        CACHE: cache modifier of the loads; ``''``: none.
        BLOCK: numbers loaded at a time.
    """
    if KIND == 'largest':
        norm = _largest(base, count, CACHE, BLOCK)
    elif KIND == 'powers':
        p = number(order)
        # Powers of the ratio to the largest: they cannot overflow, and a power that underflows is
        # negligible beside the largest, whose power is 1.
        top = _largest(base, count, CACHE, BLOCK)
        ordinary = (top > 0.0) & (top < float('inf'))
        unit = tl.where(ordinary, top, 1.0)
        sums = tl.zeros([BLOCK], dtype=tl.float64)
        for start in range(0, count, BLOCK):
            ratio = _sizes(base, start, count, CACHE, BLOCK) / unit
            power = tl.exp(p * tl.log(tl.where(ratio > 0.0, ratio, 1.0)))
            sums += tl.where(ratio > 0.0, power, 0.0)
        total = tl.sum(sums, axis=0)
        # If the largest is 0, inf or NaN, so is the norm.
        norm = top * tl.exp(tl.log(tl.where(ordinary, total, 1.0)) / p)
    else:
        sums = tl.zeros([BLOCK], dtype=tl.float64)
        for start in range(0, count, BLOCK):
            sizes = _sizes(base, start, count, CACHE, BLOCK)
            # Squares of float32 elements neither overflow nor underflow in float64.
            sums += sizes if KIND == 'absolute' else sizes * sizes
        norm = tl.sum(sums, axis=0)
        if KIND == 'squares':
            norm = tl.sqrt(norm)
    return norm


@triton.jit
def _sizes(base, start, count, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """Absolute values of the next ``BLOCK`` numbers, float64; 0 past the end."""
    places = start + tl.arange(0, BLOCK)
    values = tl.load(base + places, mask=places < count, other=0.0, cache_modifier=CACHE)
    if values.dtype != tl.float64:
        values = values.to(tl.float32)
    return tl.abs(values.to(tl.float64))


@triton.jit
def _largest(base, count, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """The largest absolute value; NaN if there is a NaN."""
    tops = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, count, BLOCK):
        sizes = _sizes(base, start, count, CACHE, BLOCK)
        tops = tl.where((sizes > tops) | (sizes != sizes), sizes, tops)
    # tl.max does not promise to propagate NaN.
    bad = tl.sum((tops != tops).to(tl.int32), axis=0)
    top = tl.max(tl.where(tops == tops, tops, 0.0), axis=0)
    return tl.where(bad > 0, float('nan'), top)
