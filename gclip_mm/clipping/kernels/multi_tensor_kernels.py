"""Triton kernels that measure, scale and clamp, and their launches; importing needs Triton."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
# Triton has no stubs, and the types of a kernel's arguments are Triton's.

from __future__ import annotations

import contextlib
import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from .orders import bits_of, joint_norm, kind_of

#: Elements that a program loads at a time.
BLOCK = 1024
_NUM_WARPS = 4
# Cache modifier that bypasses the L1 cache: L1 does not see the stores of other programs.
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
        dtype: dtype of the tensors.
        items: (I, 6) int64, see :class:`~gclip_mm.clipping.kernels.multi_tensor._Work`.
        pointers: (T,) int64, addresses of the tensors.
        partials: (I,) float64, scratch.
        arrived: (U,) int32, all 0 before and after the launch.
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
    """Multiply every unit in ``items`` by its coefficient in ``coefs`` (U,) float64, in place."""
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
    """Clamp every unit in ``items`` in place, and count the elements that change.

    Args:
        dtype: dtype of the tensors; the bounds are rounded to it.
        items: (I, 6) int64, see :class:`~gclip_mm.clipping.kernels.multi_tensor._Work`.
        pointers: (T,) int64, addresses of the tensors.
        low: lower bound, or None.
        high: upper bound, at least ``low``, or None.
        partials: (I,) float64, scratch.
        changed: (I,) float64, scratch.
        arrived: (U,) int32, all 0 before and after the launch.
        counts: (U,) float64, written: number of changed elements; NaN counts as changed.
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
    """The bits, as an int32, of a bound rounded to ``dtype`` and held in float32, which is exact.

    An int argument needs no kernel of its own for each value of a schedule. A tensor would need a
    copy to the device, one more launch.
    """
    # device='cpu' because torch's default device may be another. Overflow gives inf.
    held = torch.tensor(float(bound), dtype=dtype, device='cpu').tolist()
    bits: int = struct.unpack('i', struct.pack('f', held))[0]
    return bits


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make ``device`` current: Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext()


@triton.jit
def _comes_last(arrived, unit, count):
    """Whether this is the last of the ``count`` programs of a unit to store its partial result.

    The barriers and the acquire-release order of the atomic make the stores of the other programs
    visible to the last one. No program waits for another.
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
            # In float64: a coefficient may be too small for float32 and its product not.
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
        # Comparisons keep NaN, and -0 beside a bound of 0.
        below = inside & (values < bottom)
        above = inside & (values > top)
        new = tl.where(below, bottom, tl.where(above, top, values))
        # Only changed elements are written. Most blocks have none, and cost a read only.
        tl.store(base + columns, new.to(DTYPE), mask=below | above)
        # This also counts NaN, which does not equal itself.
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
