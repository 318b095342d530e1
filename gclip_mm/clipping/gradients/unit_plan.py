"""Unit norms with PyTorch operations, in one flat vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..host import host, np
from .movement import Movement
from .norms import accumulate_dtype, tensor_norms
from .scaling import scale_one
from .units import UnitLayout

#: Elements of scratch memory at a time.
_SCRATCH = 1 << 22


class UnitLimits(NamedTuple):
    """A limit for each unit: ``factor * max(norm of its weights, floor)``.

    Attributes:
        floor: replaces a smaller weight norm, above 0.
        factor: largest ratio of the gradient's norm to the weight's, at least 0.
    """

    floor: float
    factor: float


def unit_order(layouts: list[UnitLayout]) -> tuple[list[int], list[int]]:
    """Indices of the parameters that are one unit, and of the others; in the order of their units.

    Whole tensors come first: torch computes all their norms in one call.
    """
    whole = [i for i, layout in enumerate(layouts) if layout.dims is None]
    return whole, [i for i, layout in enumerate(layouts) if layout.dims is not None]


class UnitPlan:
    """The place of each parameter's unit norms in one flat vector (U,); made once for a view.

    Args:
        params: the N parameters (local shards).
        layouts: their unit layouts.
    """

    def __init__(self, params: list[Tensor], layouts: list[UnitLayout]) -> None:
        device = params[0].device
        # The widest dtype: torch does not narrow a float64 tensor to a float32 norm.
        is_wide = any(accumulate_dtype(param) == torch.float64 for param in params)
        dtype = torch.float64 if is_wide else torch.float32
        self.layouts = layouts
        self.whole, self.rows = unit_order(layouts)
        self.order = self.whole + self.rows
        shapes = [layouts[i].shape(params[i]) for i in self.order]
        sizes = [math.prod(shape) for shape in shapes]
        # A rank may hold no unit of a sharded parameter, and reduceat accepts no empty segment.
        self.filled = [k for k, size in enumerate(sizes) if size]
        starts = [0, *itertools.accumulate(sizes)]
        self.offsets = [starts[k] for k in self.filled]
        self.shapes = shapes
        self.sizes = sizes
        self.grad_norms = torch.empty(sum(sizes), dtype=dtype, device=device)
        self.weight_norms = torch.empty_like(self.grad_norms)
        self._slots: dict[int, list[Tensor]] = {
            id(buffer): self._cut(buffer)[len(self.whole) :]
            for buffer in (self.grad_norms, self.weight_norms)
        }

    def _cut(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector of unit norms, one for each parameter, shaped to broadcast."""
        parts = flat.split(self.sizes)  # type: ignore[no-untyped-call]
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def norms(self, tensors: list[Tensor], buffer: Tensor, guard: bool = False) -> Tensor:
        """Unit norms of all tensors, written into ``buffer`` (U,) unless a norm overflows.

        Args:
            tensors: N tensors of the shapes of the parameters.
            buffer: ``grad_norms`` or ``weight_norms``.
            guard: recompute norms that overflowed in float64 (CPU only).
        """
        whole = len(self.whole)
        if whole:
            firsts = tensor_norms([tensors[i] for i in self.whole])
            buffer[:whole] = firsts
        for i, slot in zip(self.rows, self._slots[id(buffer)], strict=True):
            layout, tensor = self.layouts[i], tensors[i]
            if tensor.device != buffer.device:
                slot.copy_(layout.norms(tensor, buffer.dtype))
            else:
                torch.linalg.vector_norm(
                    layout.split(tensor),
                    dim=layout.dims,
                    keepdim=True,
                    dtype=buffer.dtype,
                    out=slot,
                )
        values = host(buffer)
        if not guard or values is None or buffer.dtype == torch.float64:
            return buffer
        if np.isfinite(values).all():
            return buffer
        wide = buffer.double()
        if whole:
            wide[:whole] = firsts
        for i, slot in zip(self.rows, self._cut(wide)[whole:], strict=True):
            if not np.isfinite(host(slot)).all():
                slot.copy_(self.layouts[i].norms(tensors[i], torch.float64))
        return wide

    def scale(self, tensors: list[Tensor], coefs: Tensor) -> None:
        """Multiply every unit in place by its coefficient (U,)."""
        cut = self._cut(coefs)
        for k in self._touched(coefs, 1.0):
            i = self.order[k]
            scale_one(self.layouts[i].split(tensors[i]), cut[k])

    def change_norms(self, params: list[Tensor], movement: Movement) -> Tensor:
        """Unit norms (U,) of what a step has added to N parameters, some tensors at a time."""
        norms = torch.empty_like(self.grad_norms)
        slots = self._cut(norms)
        for places in self._chunks(params):
            chosen = [self.order[k] for k in places]
            for k, i, delta in zip(places, chosen, movement.of(chosen), strict=True):
                slots[k].copy_(self.layouts[i].norms(delta, norms.dtype))
        return norms

    def _chunks(self, tensors: list[Tensor]) -> Iterator[list[int]]:
        """The tensors, by their place in ``order``, in groups that bound the scratch memory."""
        group: list[int] = []
        size = 0
        for k in self.filled:
            numel = tensors[self.order[k]].numel()
            if group and size + numel > _SCRATCH:
                yield group
                group, size = [], 0
            group.append(k)
            size += numel
        if group:
            yield group

    def shorten(self, params: list[Tensor], movement: Movement, coefs: Tensor) -> None:
        """Keep of the movement of every unit the share ``coefs`` (U,), in place."""
        cut = self._cut(coefs)
        for k in self._touched(coefs, 1.0):
            i = self.order[k]
            split = self.layouts[i].split
            (delta,) = movement.of([i])
            new, old = split(params[i]), split(movement.old(i, delta))
            coef = cut[k].to(new.device, delta.dtype)
            shorter = old + coef * split(delta)
            # An infinite movement times 0 is NaN.
            between = torch.where(coef > 0, shorter, old.to(shorter.dtype))
            new.copy_(torch.where(coef == 1, new, between))

    def _touched(self, coefs: Tensor, neutral: float) -> list[int]:
        """The tensors, by their place in ``order``, that a coefficient other than this changes."""
        values = host(coefs)
        if values is None or not self.filled:
            return self.filled
        changed = np.logical_or.reduceat(values != neutral, self.offsets)
        return [k for k, yes in zip(self.filled, changed.tolist(), strict=True) if yes]
