"""Kernels for the update of a step in host memory: what was added to the weights, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..host import np
from .host_tensors import HostTensors, kernels
from .host_threads import Shares
from .multi_tensor import Units


class HostUpdates(HostTensors):
    """Measures and shortens the movement of the units of tensors in host memory.

    Nothing of the size of a tensor is written but the weights, and those only where a movement is
    shortened.

    Args:
        units: the units of each of the T parameters, numbered without gaps.
        params: the T parameters.
        terms: number of further tensors for each parameter: 1 (the weights before the step), or 2
            (the dividend and the divisor of the movement).
    """

    def __init__(self, units: list[Units], params: list[Tensor], terms: int) -> None:
        self._total = sum(unit.rows for unit in units)
        every = [
            unit._replace(first=unit.first + k * self._total)
            for k in range(1 + terms)
            for unit in units
        ]
        super().__init__(every, params * (1 + terms), (1 + terms) * self._total)
        self._terms = terms
        self._updated = self._crew_for(len(units))
        #: The parameter of each of their items.
        self._owner = self._tensor[: self._starts[len(units)]]

    def take_update(self, params: list[Tensor], terms: list[list[Tensor]]) -> bool:
        """Use these tensors from now on; False if the kernels cannot.

        The axes of a parameter and of its terms need the same order in memory.
        """
        every = [*params, *(tensor for term in terms for tensor in term)]
        strides = list(map(Tensor.stride, params)) * len(terms)
        alike = all(map(Tensor.is_contiguous, every)) or strides == list(
            map(Tensor.stride, every[len(params) :])
        )
        return alike and self.fits(every) and self.take(every)

    def measure(self, rows: np.ndarray, is_root: bool) -> Tensor:
        """2-norms of the movements of the units, (U,) float64.

        Args:
            rows: (T, 4) float64, the numbers of ``host_kernels.update`` for each parameter.
            is_root: whether the divisor is the root of the second term.
        """
        squares = np.zeros(len(self._counts))
        self._update(rows[self._owner], is_root, squares, self._updated.shares())
        return self._of_units(squares)[: self._total]

    def shorten(self, rows: np.ndarray, is_root: bool, coefs: Tensor) -> None:
        """Keep of each unit's movement the share ``coefs`` (U,), in place; 1 writes nothing.

        Args:
            rows: see :meth:`measure`.
            is_root: see :meth:`measure`.
            coefs: (U,), from 0 to 1.
        """
        keep = coefs.to(torch.float64).numpy()[self._unit[: len(self._owner)]]
        each = rows[self._owner]
        each[:, kernels().KEEP] = keep
        self._update(each, is_root, None, self._updated.shares(keep != 1), write=True)

    def _update(
        self,
        rows: np.ndarray,
        is_root: bool,
        results: np.ndarray | None,
        shares: Shares,
        write: bool = False,
    ) -> None:
        library = kernels()
        kind = library.ROOT_RATIO if is_root else library.RATIO
        given = np.concatenate([[library.DIFFERENCE if self._terms == 1 else kind], rows.ravel()])
        self._run(library.update, given.astype(np.float64), results, shares, write=write)
