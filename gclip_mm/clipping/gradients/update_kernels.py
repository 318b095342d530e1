"""Measuring and shortening the update of a step by kernels, in one pass over host memory."""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from ..host import np
from ..kernels import HostUpdates, Units, can_take
from .movement import Difference, Movement
from .unit_plan import unit_order
from .units import UnitLayout


class UpdateKernels:
    """The kernels for the update of N parameters, where there are any.

    Args:
        params: the N parameters.
        layouts: their unit layouts.
    """

    def __init__(self, params: list[Tensor], layouts: list[UnitLayout]) -> None:
        whole, rows = unit_order(layouts)
        self._order = whole + rows
        pairs = [(layouts[i], params[i]) for i in self._order]
        runs = [layout.runs(param) for layout, param in pairs]
        starts = itertools.accumulate((math.prod(a.shape(b)) for a, b in pairs), initial=0)
        # Units that are not contiguous in memory (transposed convolutions) have no kernel.
        self._units = [
            Units(start, *run) for start, run in zip(starts, runs, strict=False) if run is not None
        ]
        self._is_whole = len(self._units) == len(runs)
        self._tables: dict[int, HostUpdates] = {}
        self._used: tuple[HostUpdates, np.ndarray, bool] | None = None

    def measure(self, params: list[Tensor], movement: Movement) -> Tensor | None:
        """How far the last step has moved the units, (U,) float64; None if no kernel can tell.

        Args:
            params: the N parameters.
            movement: their movement.
        """
        self._used = None
        if not self._is_whole or not can_take(params[0]):
            return None
        terms = movement.terms()
        rows = np.zeros((len(params), 4))
        if isinstance(terms, Difference):
            tensors, is_root = [terms.olds], False
        elif terms.is_known:
            tensors, is_root = [terms.firsts, terms.seconds], terms.is_root
            rows[:, :3] = np.array([terms.rates, terms.eps, terms.decays]).T
        else:
            return None
        params, *tensors = ([column[i] for i in self._order] for column in (params, *tensors))
        tables = self._tables.get(len(tensors))
        if tables is None:
            tables = self._tables[len(tensors)] = HostUpdates(self._units, params, len(tensors))
        if not tables.take_update(params, tensors):
            return None
        self._used = tables, rows[self._order], is_root
        return tables.measure(*self._used[1:])

    def shorten(self, coefs: Tensor) -> bool:
        """Keep of each unit's movement the share ``coefs`` (U,), in place.

        Returns:
            False if :meth:`measure` could not measure this step; nothing was written.
        """
        used, self._used = self._used, None
        if used is None:
            return False
        tables, rows, is_root = used
        tables.shorten(rows, is_root, coefs)
        return True
