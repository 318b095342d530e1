"""Norms of any order in float64, for the kernels; Triton has to be there to import this module.

A norm of the norms of parts is the norm of the whole, so that the same function takes elements, the
parts that several programs have measured, and the tensors of a model together.
"""

from __future__ import annotations

import math
import struct

import triton
import triton.language as tl

_KINDS = {1.0: 'absolute', 2.0: 'squares', math.inf: 'largest'}


def kind_of(p: float) -> str:
    """How :func:`joint_norm` takes a norm of order ``p``, which is greater than 0."""
    return _KINDS.get(float(p), 'powers')


def bits_of(value: float) -> int:
    """A number as a kernel is given it, for :func:`number`.

    By its bits, since Triton hands a Python float over as float32. Not in a tensor: a schedule may
    change it in every step, and the copy would be one more thing to launch.
    """
    return struct.unpack('q', struct.pack('d', value))[0]


@triton.jit
def number(bits):
    """The float64 whose bits these are."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def joint_norm(base, count, order, KIND: tl.constexpr, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """The norm of numbers that lie one after another, 0 of none; inf or NaN where one is.

    Args:
        base: pointer to the first.
        count: how many there are.
        order: bits of the order, for the kind that needs it.
        KIND: as :func:`kind_of` has it.
        CACHE: cache modifier to load with; '': none.
        BLOCK: how many are taken at a time.
    """
    if KIND == 'largest':
        norm = _largest(base, count, CACHE, BLOCK)
    elif KIND == 'powers':
        p = number(order)
        # Powers of what is left of each beside the largest: no power of that overflows, and what
        # underflows is nothing beside it.
        top = _largest(base, count, CACHE, BLOCK)
        ordinary = (top > 0.0) & (top < float('inf'))
        unit = tl.where(ordinary, top, 1.0)
        sums = tl.zeros([BLOCK], dtype=tl.float64)
        for start in range(0, count, BLOCK):
            ratio = _sizes(base, start, count, CACHE, BLOCK) / unit
            power = tl.exp(p * tl.log(tl.where(ratio > 0.0, ratio, 1.0)))
            sums += tl.where(ratio > 0.0, power, 0.0)
        total = tl.sum(sums, axis=0)
        # Zero, inf or NaN: what the largest is, the norm is.
        norm = top * tl.exp(tl.log(tl.where(ordinary, total, 1.0)) / p)
    else:
        sums = tl.zeros([BLOCK], dtype=tl.float64)
        for start in range(0, count, BLOCK):
            sizes = _sizes(base, start, count, CACHE, BLOCK)
            # The square of a finite element is finite in float64, and of a small one not lost.
            sums += sizes if KIND == 'absolute' else sizes * sizes
        norm = tl.sum(sums, axis=0)
        if KIND == 'squares':
            norm = tl.sqrt(norm)
    return norm


@triton.jit
def _sizes(base, start, count, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """The absolute values of the next numbers, in float64; 0 behind the last."""
    places = start + tl.arange(0, BLOCK)
    values = tl.load(base + places, mask=places < count, other=0.0, cache_modifier=CACHE)
    if values.dtype != tl.float64:
        values = values.to(tl.float32)
    return tl.abs(values.to(tl.float64))


@triton.jit
def _largest(base, count, CACHE: tl.constexpr, BLOCK: tl.constexpr):
    """The largest absolute value; NaN where there is one."""
    tops = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, count, BLOCK):
        sizes = _sizes(base, start, count, CACHE, BLOCK)
        tops = tl.where((sizes > tops) | (sizes != sizes), sizes, tops)
    # The largest of numbers that may be NaN need not be NaN for the compiler.
    bad = tl.sum((tops != tops).to(tl.int32), axis=0)
    top = tl.max(tl.where(tops == tops, tops, 0.0), axis=0)
    return tl.where(bad > 0, float('nan'), top)
