"""The kernels, in Triton, which has to be there to import this module."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Elements that a program handles at a time.
BLOCK = 1024
_NUM_WARPS = 4
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def measure(
    dtype: torch.dtype,
    items: Tensor,
    pointers: Tensor,
    partials: Tensor,
    arrived: Tensor,
    norms: Tensor,
) -> None:
    """Write the 2-norm of every unit in ``items``.

    Args:
        dtype: type of the tensors' elements.
        items: (I, 6) int64, see :class:`~gclip_mm.clipping.kernels.multi_tensor._Work`.
        pointers: (T,) int64, addresses of the tensors.
        partials: (I,) float64, scratch.
        arrived: (U,) int32, all 0; they are 0 again when the kernel is through.
        norms: (U,) float64, written.
    """
    with on_device(items.device):
        _measure[(len(items),)](
            pointers,
            items,
            partials,
            arrived,
            norms,
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


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext()


@triton.jit
def _measure(pointers, items, partials, arrived, norms, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    row = items + item * 6
    base = tl.load(pointers + tl.load(row)).to(tl.pointer_type(DTYPE)) + tl.load(row + 1)
    length = tl.load(row + 2).to(tl.int32)
    unit = tl.load(row + 3)
    count = tl.load(row + 5).to(tl.int32)

    squares = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(base + columns, mask=columns < length, other=0.0)
        # In float64 the square of a finite float32 is finite, and nothing is lost of a small one.
        wide = values.to(tl.float32).to(tl.float64)
        squares += wide * wide
    total = tl.sum(squares, axis=0)

    if count == 1:
        tl.store(norms + unit, tl.sqrt(total))
    else:
        # Whoever comes last sums what all have left, in the order of the items, so that the result
        # does not depend on who that is. The barriers and the order of the atomic let it see the
        # others' stores; nobody waits for anybody.
        tl.store(partials + item, total)
        tl.debug_barrier()
        before = tl.atomic_add(arrived + unit, 1, sem='acq_rel', scope='gpu')
        tl.debug_barrier()
        if before == count - 1:
            first = tl.load(row + 4)
            sums = tl.zeros([BLOCK], dtype=tl.float64)
            for start in range(0, count, BLOCK):
                places = start + tl.arange(0, BLOCK)
                # Not from the first cache, which does not know of the others' stores.
                sums += tl.load(
                    partials + first + places,
                    mask=places < count,
                    other=0.0,
                    cache_modifier='.cg',
                )
            tl.store(norms + unit, tl.sqrt(tl.sum(sums, axis=0)))
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
