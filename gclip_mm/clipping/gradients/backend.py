"""Reads and writes the gradients of a view, and chooses the kernels.

:class:`Backend` uses PyTorch operations, works on every device and dtype, and is the reference for
the tests of the kernels. :class:`ShardedBackend` adds the exchange between processes.
:class:`~gclip_mm.clipping.gradients.kernel_backend.KernelBackend` uses Triton on a GPU and Numba on
a CPU where the gradients allow it, and falls back to PyTorch where they do not.

A backend is made once for a view. It caches the results of a measuring call until the gradients are
written, so that the writing call does not read the gradients again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...compat import foreach_scale_
from ..host import host, np
from .movement import Movement
from .names import ParamInfo
from .norms import combine, finish_norms, read_by_rows, tensor_norms
from .outliers import OutlierEdit
from .rows import NARROW, RowNorms
from .scaling import has_half, scale_each
from .sharded_units import UnitReduction
from .sharding import Sharding, to_local
from .unit_plan import UnitLimits, UnitPlan, unit_order
from .units import UnitLayout

#: Bounds of the elements: one for all gradients, or one for each (an array or tensor (N,)); None:
#: no bound.
Bound = float | Tensor | Any | None


class Ranges(NamedTuple):
    """The range of the elements of each gradient.

    Attributes:
        low: lower end, for all gradients or (N,).
        high: upper end, likewise.
        threshold: the number to log: 0-d tensor or float.
        change: ``change(i, values, out)`` writes the new values of elements of gradient ``i`` to
            ``out``, including elements inside the range; both tensors have the same shape. None:
            clamp to the range.
    """

    low: Bound
    high: Bound
    threshold: Tensor | float
    change: Callable[[int, Tensor, Tensor], object] | None = None


class Backend:
    """Reads and writes gradients with PyTorch operations.

    Args:
        infos: the N parameters whose gradients will be loaded.
        exact: compute all norms bit-identical to torch's.
    """

    def __init__(self, infos: list[ParamInfo], exact: bool = False) -> None:
        self._infos = infos
        self._params = [info.param for info in infos]
        self._exact = exact
        self._layouts: list[UnitLayout] | None = None
        self._unit_plan: UnitPlan | None = None
        #: The N gradients of this step; empty between steps.
        self.grads: list[Tensor] = []
        self._may_write = False
        # Results of element_norms() in this step.
        self._parts: Tensor | None = None
        self._rows: RowNorms | None = None

    def load(self, grads: list[Tensor], may_write_early: bool) -> None:
        """Take the N gradients of a step.

        Args:
            grads: the gradients (local shards).
            may_write_early: whether measuring may clip; see ``GradView.may_write_early``.
        """
        self.grads = grads
        self._may_write = may_write_early
        self._parts = self._rows = None

    @property
    def params(self) -> list[Tensor]:
        """The N parameters; for a sharded one, the local shard."""
        return self._params

    @property
    def layouts(self) -> list[UnitLayout]:
        """Unit layouts of the N parameters."""
        if self._layouts is None:
            self._layouts = [info.layout for info in self._infos]
        return self._layouts

    # -- whole tensors ---------------------------------------------------------------------------
    def norms(self, p: float = 2.0, exact: bool = False, kernels: bool = True) -> Tensor:
        """The p-norm of each whole gradient, (N,), float32 or float64.

        Args:
            p: order of the norm, greater than 0, or ``math.inf``.
            exact: bit-identical to ``torch.nn.utils.clip_grad_norm_`` on a CPU.
            kernels: whether a kernel may be used.
        """
        return tensor_norms(self.grads, p, exact or self._exact)

    def scale_all(self, coef: Tensor) -> None:
        """Multiply all gradients in place by one coefficient (0-d)."""
        grads = self.grads
        if has_half(grads) or any(grad.device != coef.device for grad in grads):
            scale_each(grads, [coef] * len(grads))
        else:
            foreach_scale_(grads, coef)

    def scale(self, coefs: Tensor) -> None:
        """Multiply each gradient in place by its coefficient; coefs has shape (N,).

        On a CPU, where reading the coefficients is free, gradients with coefficient 1 are not
        written.
        """
        grads, values = self.grads, host(coefs)
        if values is not None:
            cut = (values != 1).nonzero()[0].tolist()
            grads = [grads[i] for i in cut]
            if has_half(grads):
                scale_each(grads, coefs[cut].unbind())
            elif cut:
                torch._foreach_mul_(grads, values[cut].tolist())
        elif has_half(grads):
            scale_each(grads, coefs.unbind())
        elif all(grad.device == coefs.device for grad in grads):
            torch._foreach_mul_(grads, list(coefs.unbind()))
        else:
            torch._foreach_mul_(grads, [c.to(g.device) for c, g in zip(coefs, grads, strict=True)])

    # -- units -----------------------------------------------------------------------------------
    @property
    def _plan(self) -> UnitPlan:
        if self._unit_plan is None:
            self._unit_plan = UnitPlan(self.params, self.layouts)
        return self._unit_plan

    def unit_norms(self, limits: UnitLimits | None = None) -> tuple[Tensor, Tensor]:
        """The norm of all gradients (0-d) and the norms of their units (U,).

        Args:
            limits: the limits of the units. If clipping early is allowed, a kernel may scale to
                them in the same pass; :meth:`scale_units` then skips those units.
        """
        norms = self._plan.norms(self.grads, self._plan.grad_norms, guard=True)
        total = combine(norms)
        value = host(total)
        if value is not None and value < 1e-15:
            # The squares of such small norms underflow float32, which would falsify the record.
            total = combine(tensor_norms(self.grads, exact=False))
        return total, norms

    def unit_weights(self) -> Tensor:
        """The norms of the units of the weights (U,), in the order of :meth:`unit_norms`."""
        return self._plan.norms(self.params, self._plan.weight_norms)

    def scale_units(self, coefs: Tensor) -> None:
        """Multiply every unit in place by its coefficient (U,)."""
        self._plan.scale(self.grads, coefs)

    def scale_units_of(self, tensors: list[Tensor], coefs: Tensor) -> None:
        """Multiply the units of other tensors of these shapes, without measuring them first."""
        self.load(tensors, False)
        self.scale_units(coefs)
        self.load([], False)

    def unit_totals(
        self, post: Tensor, bounds: Tensor, clipped: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Totals over the units, as a rule reports them.

        Args:
            post: (U,) norms after clipping.
            bounds: (U,) bounds of the units.
            clipped: (U,) bool, the units that were clipped.

        Returns:
            Norm after clipping (0-d), norm of all bounds (0-d), number of clipped units (0-d),
            number of units.
        """
        norm, bound = (combine(part, exact=False) for part in (post, bounds))
        return norm, bound, clipped.sum(), len(post)

    @property
    def unit_count(self) -> int:
        """Number of units of the whole tensors."""
        return sum(self.unit_sizes)

    @cached_property
    def unit_owner(self) -> Tensor:
        """Which of the N parameters each unit belongs to, (U,) int64, on their device."""
        # Not from the plan: it would be made in each step whose missing gradients are new.
        layouts, sizes = self.layouts, self.unit_sizes
        whole, rows = unit_order(layouts)
        order = torch.tensor(whole + rows)
        counts = torch.tensor([sizes[i] for i in whole + rows])
        return torch.repeat_interleave(order, counts).to(self.params[0].device)

    @cached_property
    def unit_sizes(self) -> list[int]:
        """Number of units of each parameter; for a sharded one, of the local shard."""
        pairs = zip(self.layouts, self.params, strict=True)
        return [math.prod(layout.shape(param)) for layout, param in pairs]

    def unit_sums(self, values: Tensor) -> Tensor:
        """Sums (N, K) over the units of each parameter, given values (U, K)."""
        sums = values.new_zeros(len(self._infos), values.shape[1])
        return sums.index_add_(0, self.unit_owner.to(values.device), values)

    def change_norms(self, movement: Movement) -> Tensor:
        """How far the last step has moved the units of the parameters, (U,)."""
        return self._plan.change_norms([p.detach() for p in self.params], movement)

    def shorten_change(self, movement: Movement, coefs: Tensor) -> None:
        """Keep of each unit's movement the share ``coefs`` (U,), in place."""
        self._plan.shorten([p.detach() for p in self.params], movement, coefs)

    # -- elements --------------------------------------------------------------------------------
    def element_norms(
        self, fixed_range: tuple[float | None, float | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The 2-norm of all gradients (0-d) and of each (N,); :meth:`edit` reuses them.

        Args:
            fixed_range: the range that elements will be clamped to, if it is already known. If
                clipping early is allowed, a kernel may clamp in the same pass.
        """
        rows = read_by_rows(self.grads, NARROW)
        if rows is None:
            parts = tensor_norms(self.grads, exact=False)
        else:
            parts = finish_norms(rows.norms(self.grads), self.grads)
        parts = self._whole(parts)
        self._parts, self._rows = parts, rows
        return combine(parts), parts

    def edit(self, ranges: Ranges, is_clamp: bool = False) -> tuple[Tensor, Tensor | float]:
        """Change the elements outside their range in place; call :meth:`element_norms` first.

        Args:
            ranges: the ranges, and how the elements outside change.
            is_clamp: whether the range is the ``fixed_range`` of :meth:`element_norms`, and
                elements are clamped to it.

        Returns:
            The 2-norm of all gradients after the edit (0-d), and the number of changed elements.
        """
        parts = self.element_norms()[1] if self._parts is None else self._parts
        edit = OutlierEdit(self.grads, parts, self._rows)
        _apply(edit, ranges, len(self.grads))
        return combine(self._norms_after(edit)), self._sum(edit.counts).sum()

    def _norms_after(self, edit: OutlierEdit) -> Tensor:
        return edit.norms()

    def _whole(self, norms: Tensor) -> Tensor:
        """Convert 2-norms of local shards to 2-norms of whole tensors."""
        return norms

    def _sum(self, values: Tensor) -> Tensor:
        return values


class ShardedBackend(Backend):
    """Reads and writes local shards; norms and counts are those of whole tensors.

    Args:
        infos: the N parameters whose gradients will be loaded.
        slots: their places among all parameters of the route.
        sharding: how the parameters of the route are sharded.
    """

    def __init__(
        self, infos: list[ParamInfo], slots: list[int], sharding: Sharding, exact: bool = False
    ) -> None:
        super().__init__(infos, exact)
        self._slots = slots
        self._sharding = sharding
        self._reduction: UnitReduction | None = None

    @property
    def params(self) -> list[Tensor]:
        # Read again in each step: FSDP may replace the storage of a shard between steps.
        return [to_local(param) for param in self._params]

    def norms(self, p: float = 2.0, exact: bool = False, kernels: bool = True) -> Tensor:
        return self._sharding.norms(super().norms(p, exact), p)

    def unit_norms(self, limits: UnitLimits | None = None) -> tuple[Tensor, Tensor]:
        plan = self._plan
        if self._reduction is None:
            self._reduction = UnitReduction(
                [self._infos[i] for i in plan.order],
                [self.layouts[i] for i in plan.order],
                [self._sharding.specs[self._slots[i]] for i in plan.order],
                plan.sizes,
                plan.grad_norms.device,
            )
        norms = plan.norms(self.grads, plan.grad_norms, guard=True)
        return self._reduction.measure(norms, plan.norms(self.params, plan.weight_norms))

    def unit_weights(self) -> Tensor:
        assert self._reduction is not None and self._reduction.weights is not None
        return self._reduction.weights

    def unit_totals(
        self, post: Tensor, bounds: Tensor, clipped: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        assert self._reduction is not None
        return self._reduction.totals(post, bounds, clipped)

    @property
    def unit_count(self) -> int:
        assert self._reduction is not None
        return self._reduction.count

    def unit_sums(self, values: Tensor) -> Tensor:
        assert self._reduction is not None
        sums = values.new_zeros(len(self._infos), values.shape[1])
        sums[self._order.to(values.device)] = self._reduction.sums(values)
        return sums

    @cached_property
    def _order(self) -> Tensor:
        """The order of the parameters in the flat vector of units, (N,) int64, on their device."""
        return torch.tensor(self._plan.order, device=self._plan.grad_norms.device)

    def change_norms(self, movement: Movement) -> Tensor:
        assert self._reduction is not None
        norms = super().change_norms(movement)
        return self._reduction.measure(norms, norms)[1]

    def _norms_after(self, edit: OutlierEdit) -> Tensor:
        return self.norms()

    def _whole(self, norms: Tensor) -> Tensor:
        return self._sharding.norms(norms, 2.0)

    def _sum(self, values: Tensor) -> Tensor:
        return self._sharding.sum(values)


def _apply(edit: OutlierEdit, ranges: Ranges, count: int) -> None:
    low: Any = ranges.low
    high: Any = ranges.high
    change = ranges.change
    if change is None and not (_is_each(low) or _is_each(high)):

        def clamp(values: Tensor, out: Tensor) -> None:
            torch.clamp(values, low, high, out=out)

        edit.apply_to_all(low, high, clamp)
        return
    for i in range(count):
        ends = _of(low, i), _of(high, i)
        if isinstance(ends[1], float) and ends == (-math.inf, math.inf):
            continue
        edit.apply(i, *ends, _Change(i, *ends, change))


class _Change:
    """The change to the elements of one gradient; see :class:`OutlierEdit`."""

    def __init__(self, i: int, low: Any, high: Any, change: Any) -> None:
        self._i, self._low, self._high, self._change = i, low, high, change

    def __call__(self, values: Tensor, out: Tensor) -> None:
        if self._change is None:
            torch.clamp(values, self._low, self._high, out=out)
        else:
            self._change(self._i, values, out)


def _is_each(bound: Bound) -> bool:
    return isinstance(bound, Tensor) or (np is not None and isinstance(bound, np.ndarray))


def _of(bound: Bound, i: int) -> Any:
    if not _is_each(bound):
        return bound
    return bound[i] if isinstance(bound, Tensor) else float(bound[i])  # type: ignore[index]


__all__ = ['Backend', 'Ranges', 'ShardedBackend', 'UnitLimits']
