"""Kernels for the gradients of a view: Triton on a GPU, Numba on a CPU."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...compat import mark_written
from ..host import host
from ..kernels import HostTensors, MultiTensor, Units, UnitTensors, can_run_on, can_take
from .backend import Backend, Ranges, ShardedBackend
from .movement import Movement
from .names import ParamInfo
from .norms import combine
from .sharding import Sharding
from .unit_plan import UnitLimits, unit_order
from .units import UnitLayout
from .update_kernels import UpdateKernels
from .update_parts import UpdateParts


class RouteUnits:
    """The units of all parameters of a route, in tables that views with fewer gradients share.

    Without it every new set of missing gradients, as stochastic depth makes one in each step, would
    build its tables from scratch.

    Args:
        infos: all parameters of the route.
    """

    def __init__(self, infos: list[ParamInfo]) -> None:
        self._infos = infos
        self._tables: dict[type, UnitTensors] = {}

    @cached_property
    def layouts(self) -> list[UnitLayout]:
        """Unit layouts of the parameters."""
        return [info.layout for info in self._infos]

    @cached_property
    def sizes(self) -> list[int]:
        """Number of units of each parameter."""
        pairs = zip(self.layouts, self._infos, strict=True)
        return [math.prod(layout.shape(info.param)) for layout, info in pairs]

    def tables(
        self, kind: type[MultiTensor] | type[HostTensors], slots: list[int]
    ) -> UnitTensors | None:
        """Tables for the gradients of some parameters, or None if they have to be made for them.

        Args:
            kind: the kernels.
            slots: indices of the parameters.
        """
        if kind is not HostTensors:
            return None
        if kind not in self._tables:
            params = [info.param for info in self._infos]
            self._tables[kind] = make_unit_tables(params, params, self.layouts, kind)
        return self._tables[kind].restricted(slots)


def make_unit_tables(
    grads: list[Tensor],
    params: list[Tensor],
    layouts: list[UnitLayout],
    kind: type[MultiTensor] | type[HostTensors],
) -> UnitTensors:
    """Tables for the units of N gradients and of their parameters."""
    pairs = list(zip(layouts, params, strict=True))
    runs = [layout.runs(param) for layout, param in pairs]
    sizes = [math.prod(layout.shape(param)) for layout, param in pairs]
    whole, rows = unit_order(layouts)
    return UnitTensors(grads, params, runs, sizes, whole + rows, kind)


def make_backend(
    infos: list[ParamInfo],
    slots: list[int],
    sharding: Sharding | None,
    exact: bool = False,
    units: RouteUnits | None = None,
) -> Backend:
    """The backend for the gradients of some parameters.

    Args:
        infos: the N parameters.
        slots: their places among all parameters of the route.
        sharding: how the parameters of the route are sharded, or None.
        exact: compute all norms bit-identical to torch's, without kernels.
        units: the units of all parameters of the route, if other views share them.
    """
    if sharding is not None:
        return ShardedBackend(infos, slots, sharding, exact)
    return Backend(infos, exact=True) if exact else KernelBackend(infos, slots, units)


class KernelBackend(Backend):
    """Reads and writes all gradients in one kernel launch, or in one pass over host memory.

    The backend checks whether the kernels support the gradients of a step at the first use in the
    step, and again before writing, because an observer may have replaced a gradient. If not, it
    falls back to :class:`~gclip_mm.clipping.gradients.backend.Backend`.
    """

    def __init__(
        self, infos: list[ParamInfo], slots: list[int], units: RouteUnits | None = None
    ) -> None:
        super().__init__(infos)
        self._slots = slots
        self._shared = units
        self._tables: dict[tuple[str, type], Any] = {}
        # Chosen at the first step: a view is made for gradients of one device.
        self._kind: type[MultiTensor] | type[HostTensors] | None = None
        self._is_chosen = False
        # The kernels that measured the gradients of this step, if any.
        self._whole_used: MultiTensor | HostTensors | None = None
        self._units_used: UnitTensors | None = None
        self._weights: Tensor | None = None
        self._scan: Any = None

    def load(self, grads: list[Tensor], may_write_early: bool) -> None:
        super().load(grads, may_write_early)
        self._whole_used = self._units_used = self._weights = self._scan = None

    @property
    def layouts(self) -> list[UnitLayout]:
        if self._shared is None:
            return super().layouts
        if self._layouts is None:
            layouts = self._shared.layouts
            self._layouts = [layouts[slot] for slot in self._slots]
        return self._layouts

    @cached_property
    def unit_sizes(self) -> list[int]:
        if self._shared is None:
            return super().unit_sizes
        sizes = self._shared.sizes
        return [sizes[slot] for slot in self._slots]

    # -- the kernels -----------------------------------------------------------------------------
    def _choose(self) -> type[MultiTensor] | type[HostTensors] | None:
        if not self._is_chosen:
            self._is_chosen = True
            first = self.grads[0]
            if can_run_on(first.device):
                self._kind = MultiTensor
            elif can_take(first):
                self._kind = HostTensors
        return self._kind

    def _whole_kernels(
        self, p: float = 2.0, exact: bool = False
    ) -> MultiTensor | HostTensors | None:
        """The kernels for whole tensors, or None if they do not support these gradients."""
        kind = self._choose()
        if kind is None or (kind is HostTensors and (exact or p != 2)):
            return None
        tables = self._tables.get(('whole', kind))
        if tables is None or not tables.fits(self.grads):
            units = [Units(k, 1, grad.numel()) for k, grad in enumerate(self.grads)]
            tables = self._tables['whole', kind] = kind(units, self.grads)
        return tables if tables.take(self.grads) else None

    def _unit_kernels(self) -> UnitTensors | None:
        """The kernels for units, or None if they do not support these gradients."""
        kind = self._choose()
        if kind is None:
            return None
        tables = self._tables.get(('units', kind))
        if tables is None and self._shared is not None:
            tables = self._shared.tables(kind, self._slots)
        if tables is None or not tables.fits(self.grads, self.params):
            tables = make_unit_tables(self.grads, self.params, self.layouts, kind)
        self._tables['units', kind] = tables
        return tables if tables.take(self.grads, self.params) else None

    # -- whole tensors ---------------------------------------------------------------------------
    def norms(self, p: float = 2.0, exact: bool = False, kernels: bool = True) -> Tensor:
        whole = self._whole_kernels(p, exact) if kernels else None
        if whole is None:
            return super().norms(p, exact)
        self._whole_used = whole
        return whole.norms(p)

    def scale(self, coefs: Tensor) -> None:
        whole = self._whole_used
        if whole is None or not whole.has(self.grads):
            super().scale(coefs)
        else:
            whole.scale(coefs)
            mark_written(self.grads)

    # -- units -----------------------------------------------------------------------------------
    def unit_norms(self, limits: UnitLimits | None = None) -> tuple[Tensor, Tensor]:
        units = self._units_used = self._unit_kernels()
        if units is None:
            return super().unit_norms(limits)
        norms, weights = units.measure(limits if self._may_write else None)
        if units.has_scaled:
            mark_written(self.grads)
        for i, where in units.rest:
            for tensor, flat in ((self.grads[i], norms), (self.params[i], weights)):
                flat[where] = self.layouts[i].norms(tensor, torch.float64).reshape(-1)
        self._weights = weights
        return combine(norms, exact=False), norms

    def unit_weights(self) -> Tensor:
        return super().unit_weights() if self._weights is None else self._weights

    def scale_units(self, coefs: Tensor) -> None:
        units = self._units_used
        if units is None or not (units.has_scaled or units.has(self.grads)):
            super().scale_units(coefs)
            return
        units.scale(coefs)
        for i, where in units.rest:
            layout, grad = self.layouts[i], self.grads[i]
            layout.split(grad).mul_(coefs[where].view(layout.shape(grad)))
        mark_written(self.grads)

    def scale_units_of(self, tensors: list[Tensor], coefs: Tensor) -> None:
        self.load(tensors, False)
        self._units_used = self._unit_kernels()
        self.scale_units(coefs)
        self.load([], False)

    # -- the update of a step --------------------------------------------------------------------
    @cached_property
    def _parts_of_update(self) -> UpdateParts:
        def part(places: list[int]) -> KernelBackend:
            infos = [self._infos[i] for i in places]
            return KernelBackend(infos, [self._slots[i] for i in places], self._shared)

        return UpdateParts([param.numel() for param in self.params], self.unit_owner, part)

    @cached_property
    def _update_kernels(self) -> UpdateKernels:
        return UpdateKernels(self.params, self.layouts)

    def change_norms(self, movement: Movement) -> Tensor:
        norms = self._update_kernels.measure([p.detach() for p in self.params], movement)
        return self._parts_of_update.norms(movement) if norms is None else norms

    def shorten_change(self, movement: Movement, coefs: Tensor) -> None:
        if self._update_kernels.shorten(coefs):
            mark_written(self.params)
        else:
            params = [param.detach() for param in self.params]
            self._parts_of_update.shorten(movement, coefs, params)
        values = host(coefs)
        if values is not None and not values.all():
            # An infinite movement times 0 is NaN: put the old weights back.
            super().shorten_change(movement, torch.where(coefs == 0, 0.0, 1.0))

    # -- elements --------------------------------------------------------------------------------
    def element_norms(
        self, fixed_range: tuple[float | None, float | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        self._scan = None
        whole = self._whole_used = None if fixed_range is None else self._whole_kernels()
        if whole is None or fixed_range is None:
            return super().element_norms()
        if isinstance(whole, HostTensors):
            scan = self._scan = whole.scan(*fixed_range, write=self._may_write)
            if scan.written:
                mark_written(self.grads)
            self._parts = scan.norms
            return scan.totals[0], scan.norms
        self._parts = whole.norms()
        return combine(self._parts), self._parts

    def edit(self, ranges: Ranges, is_clamp: bool = False) -> tuple[Tensor, Tensor | float]:
        if not is_clamp:
            return super().edit(ranges)
        whole, scan = self._whole_used, self._scan
        low: Any = ranges.low
        high: Any = ranges.high
        if whole is not None and not (scan and scan.written) and not whole.has(self.grads):
            # A gradient was replaced since it was measured.
            self.element_norms((low, high))
            whole, scan = self._whole_used, self._scan
        # Non-finite elements: the compiled loop and torch.clamp treat them differently.
        if scan is not None and math.isfinite(host(scan.totals[0])):
            if not scan.written:
                assert isinstance(whole, HostTensors)
                whole.write(scan)
                mark_written(self.grads)
            return scan.totals[1], scan.changed
        if isinstance(whole, MultiTensor):
            counts, posts = whole.clamp(low, high)
            mark_written(self.grads)
            return combine(posts), counts.sum()
        return super().edit(ranges)
