"""The kernels, in Triton, which has to be there to import this module."""

from __future__ import annotations

import contextlib
import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from .orders import bits_of, joint_norm, kind_of

#: Elements that a program handles at a time.
BLOCK = 1024
_NUM_WARPS = 4
# What other programs have left is not loaded from the first cache, which does not know of it.
_SHARED = tl.constexpr('.cg')
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def measure(
    dtype: torch.dtype,
    items: Tensor,
    pointers: Tensor,
    partials: Tensor,
    arrived: Tensor,
    norms: Tensor,
    p: float = 2.0,
) -> None:
    """Write the p-norm of every unit in ``items``.

    Args:
        dtype: type of the tensors' elements.
        items: (I, 6) int64, see :class:`~gclip_mm.clipping.kernels.multi_tensor._Work`.
        pointers: (T,) int64, addresses of the tensors.
        partials: (I,) float64, scratch.
        arrived: (U,) int32, all 0; they are 0 again when the kernel is through.
        norms: (U,) float64, written.
        p: order of the norm, greater than 0, or ``math.inf``.
    """
    with on_device(items.device):
        _measure[(len(items),)](
            pointers,
            items,
            partials,
            arrived,
            norms,
            bits_of(p),
            KIND=kind_of(p),
            DTYPE=_TYPES[dtype],
            BLOCK=BLOCK,
            num_warps=_NUM_WARPS,
        )


def scale(dtype: torch.dtype, items: Tensor, pointers: Tensor, coefs: Tensor) -> None:
    """Multiply every unit in ``items`` by its coefficient (U,) float64, in place."""
    with on_device(items.device):
        _scale[(len(items),)](
            pointers, items, coefs, DTYPE=_TYPES[dtype], BLOCK=BLOCK, num_warps=_NUM_WARPS
        )


def clamp(
    dtype: torch.dtype,
    items: Tensor,
    pointers: Tensor,
    low: float | None,
    high: float | None,
    partials: Tensor,
    changed: Tensor,
    arrived: Tensor,
    counts: Tensor,
    norms: Tensor,
) -> None:
    """Clamp every unit in ``items`` in place, and write how many of its elements that changed.

    Args:
        dtype: type of the tensors' elements; the bounds are rounded to it.
        items: (I, 6) int64, see :class:`~gclip_mm.clipping.kernels.multi_tensor._Work`.
        pointers: (T,) int64, addresses of the tensors.
        low: lower bound; None: there is none.
        high: upper bound, at least ``low``; None: there is none.
        partials: (I,) float64, scratch.
        changed: (I,) float64, scratch.
        arrived: (U,) int32, all 0; they are 0 again when the kernel is through.
        counts: (U,) float64, written: elements changed, NaN among them.
        norms: (U,) float64, written: 2-norm of the clamped unit.
    """
    with on_device(items.device):
        _clamp[(len(items),)](
            pointers,
            items,
            _bits(-math.inf if low is None else low, dtype),
            _bits(math.inf if high is None else high, dtype),
            partials,
            changed,
            arrived,
            counts,
            norms,
            DTYPE=_TYPES[dtype],
            BLOCK=BLOCK,
            num_warps=_NUM_WARPS,
        )


def _bits(bound: float, dtype: torch.dtype) -> int:
    """A bound as ``dtype`` has it, by its bits in float32, which holds that exactly.

    Always an int32, so that no value of a schedule needs a kernel of its own; and not in a tensor,
    since the copy would be one more thing to launch.
    """
    # On the host, whatever torch's default device is. What is too large for the type becomes inf.
    held = torch.tensor(float(bound), dtype=dtype, device='cpu').tolist()
    return struct.unpack('i', struct.pack('f', held))[0]


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext()


@triton.jit
def _comes_last(arrived, unit, count):
    """Whether all other programs of a unit have left their partial results in memory.

    The barriers and the order of the atomic let the last one see the others' stores; nobody waits
    for anybody.
    """
    tl.debug_barrier()
    before = tl.atomic_add(arrived + unit, 1, sem='acq_rel', scope='gpu')
    tl.debug_barrier()
    return before == count - 1


@triton.jit(do_not_specialize=['order'])
def _measure(
    pointers,
    items,
    partials,
    arrived,
    norms,
    order,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    row = items + item * 6
    base = tl.load(pointers + tl.load(row)).to(tl.pointer_type(DTYPE)) + tl.load(row + 1)
    length = tl.load(row + 2).to(tl.int32)
    unit = tl.load(row + 3)
    count = tl.load(row + 5).to(tl.int32)

    norm = joint_norm(base, length, order, KIND, '', BLOCK)
    if count == 1:
        tl.store(norms + unit, norm)
    else:
        tl.store(partials + item, norm)
        if _comes_last(arrived, unit, count):
            first = partials + tl.load(row + 4)
            tl.store(norms + unit, joint_norm(first, count, order, KIND, _SHARED, BLOCK))
            tl.store(arrived + unit, 0)


@triton.jit
def _scale(pointers, items, coefs, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    row = items + tl.program_id(0).to(tl.int64) * 6
    coef = tl.load(coefs + tl.load(row + 3))
    if coef != 1.0:
        base = tl.load(pointers + tl.load(row)).to(tl.pointer_type(DTYPE)) + tl.load(row + 1)
        length = tl.load(row + 2).to(tl.int32)
        for start in range(0, length, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < length
            values = tl.load(base + columns, mask=inside, other=0.0)
            # A coefficient below the smallest float32 still scales a large gradient to a number.
            scaled = values.to(tl.float32).to(tl.float64) * coef
            tl.store(base + columns, scaled.to(tl.float32).to(DTYPE), mask=inside)


@triton.jit(do_not_specialize=['low', 'high'])
def _clamp(
    pointers,
    items,
    low,
    high,
    partials,
    changed,
    arrived,
    counts,
    norms,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    row = items + item * 6
    base = tl.load(pointers + tl.load(row)).to(tl.pointer_type(DTYPE)) + tl.load(row + 1)
    length = tl.load(row + 2).to(tl.int32)
    unit = tl.load(row + 3)
    count = tl.load(row + 5).to(tl.int32)
    bottom = low.to(tl.float32, bitcast=True)
    top = high.to(tl.float32, bitcast=True)

    squares = tl.zeros([BLOCK], dtype=tl.float64)
    hits = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < length
        values = tl.load(base + columns, mask=inside, other=0.0).to(tl.float32)
        # Compared, which NaN is not: it stays what it is, as does -0 beside a bound of 0.
        below = inside & (values < bottom)
        above = inside & (values > top)
        new = tl.where(below, bottom, tl.where(above, top, values))
        # Nothing else is written: most blocks have nothing outside, and cost a read only.
        tl.store(base + columns, new.to(DTYPE), mask=below | above)
        # NaN is counted, since it does not equal what it becomes.
        hits += (new != values).to(tl.int32)
        wide = new.to(tl.float64)
        squares += wide * wide
    norm = tl.sqrt(tl.sum(squares, axis=0))
    hit = tl.sum(hits, axis=0).to(tl.float64)

    if count == 1:
        tl.store(counts + unit, hit)
        tl.store(norms + unit, norm)
    else:
        tl.store(partials + item, norm)
        tl.store(changed + item, hit)
        if _comes_last(arrived, unit, count):
            # The 1-norm of counts is their sum.
            first = tl.load(row + 4)
            total = joint_norm(changed + first, count, 0, 'absolute', _SHARED, BLOCK)
            norm = joint_norm(partials + first, count, 0, 'squares', _SHARED, BLOCK)
            tl.store(counts + unit, total)
            tl.store(norms + unit, norm)
            tl.store(arrived + unit, 0)
