"""Kernels for the units of gradients and of weights, measured together."""

from __future__ import annotations

import copy
import itertools

from torch import Tensor

from ..host import np
from .host_tensors import HostTensors
from .multi_tensor import MultiTensor, Units


class UnitTensors:
    """Measures and scales the units of gradients, numbered consecutively in a given order.

    Tensors whose units are not contiguous in memory (those of a transposed convolution) are left to
    the caller: :attr:`rest` lists them.

    Args:
        grads: N gradients.
        params: the N parameters.
        runs: for each, (number of units, elements of each) if every unit is contiguous in memory,
            else None.
        sizes: for each, the number of its units.
        order: permutation of the N indices; units are numbered in this order.
        kind: ``MultiTensor`` for a GPU, ``HostTensors`` for host memory.
    """

    def __init__(
        self,
        grads: list[Tensor],
        params: list[Tensor],
        runs: list[tuple[int, int] | None],
        sizes: list[int],
        order: list[int],
        kind: type[MultiTensor] | type[HostTensors],
    ) -> None:
        self._order = order
        self._sizes = sizes
        # The index of the parameter of each unit, made when first needed.
        self._owners: np.ndarray | None = None
        starts = [0, *itertools.accumulate(sizes[i] for i in order)]
        self._total = starts[-1]
        self._indices: list[int] = []
        #: (index, its units as a slice of (U,)) of each gradient that is left to the caller.
        self.rest: list[tuple[int, slice]] = []
        of_grads: list[Units] = []
        for i, start in zip(order, starts, strict=False):
            run = runs[i]
            if run is None:
                self.rest.append((i, slice(start, start + sizes[i])))
            else:
                self._indices.append(i)
                of_grads.append(Units(start, *run))
        of_weights = [unit._replace(first=self._total + unit.first) for unit in of_grads]
        self._multi: MultiTensor | HostTensors | None = None
        if self._indices:
            both = self._both(grads, params)
            self._multi = kind(of_grads + of_weights, both, 2 * self._total)
        # Units are cut by the shape of the parameter: a gradient of another shape has other memory.
        self._match = all(grads[i].shape == params[i].shape for i in self._indices)
        #: Whether :meth:`measure` has scaled the gradients that are not in :attr:`rest`.
        self.has_scaled = False

    def restricted(self, chosen: list[int]) -> UnitTensors | None:
        """The tables for some of the N parameters; None if they have to be made from scratch.

        Args:
            chosen: their indices, in ascending order.
        """
        multi = self._multi
        if not isinstance(multi, HostTensors):
            return None
        if self._owners is None:
            sizes = [self._sizes[i] for i in self._order]
            self._owners = np.repeat(np.array(self._order), sizes)
        # No loop over the parameters: this runs in every step whose missing gradients are new.
        present = np.zeros(len(self._sizes), dtype=bool)
        present[chosen] = True
        indices = np.array(self._indices)
        kept = present[indices]
        if not kept.any():
            return None
        places = np.cumsum(present) - 1
        stays = present[self._owners]
        numbers = np.cumsum(stays) - 1
        part = copy.copy(self)
        part._total = int(stays.sum())
        part._indices = places[indices[kept]].tolist()
        part.rest = []
        for i, where in self.rest:
            if present[i]:
                first = int(numbers[where.start]) if self._sizes[i] else 0
                part.rest.append((int(places[i]), slice(first, first + self._sizes[i])))
        # The units of the gradients, then those of the weights.
        numbers = np.concatenate([numbers, numbers + part._total])
        part._multi = multi.restricted(np.concatenate([kept, kept]), numbers, 2 * part._total)
        part.has_scaled = False
        return part

    def _both(self, grads: list[Tensor], params: list[Tensor]) -> list[Tensor]:
        return [grads[i] for i in self._indices] + [params[i] for i in self._indices]

    def fits(self, grads: list[Tensor], params: list[Tensor]) -> bool:
        """Whether gradients and weights have the shapes that the tables were made for."""
        return self._multi is None or self._multi.fits(self._both(grads, params))

    def take(self, grads: list[Tensor], params: list[Tensor]) -> bool:
        """Use these tensors from now on; False if the kernels cannot."""
        self.has_scaled = False
        return (
            self._multi is not None and self._match and self._multi.take(self._both(grads, params))
        )

    def has(self, grads: list[Tensor]) -> bool:
        """Whether these gradients have the addresses of those given to :meth:`take`."""
        assert self._multi is not None
        return self._multi.has([grads[i] for i in self._indices])

    def measure(self, limits: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
        """2-norms of the units of gradients and of weights, both (U,) float64.

        The values at the slices of :attr:`rest` are undefined; the caller writes them.

        Args:
            limits: (floor, factor): a unit may be scaled down to ``factor * max(weight, floor)``,
                with ``weight`` the norm of its weights, in the same pass. :attr:`has_scaled` tells
                whether that was done.
        """
        multi = self._multi
        assert multi is not None
        if limits is not None and isinstance(multi, HostTensors) and multi.can_limit:
            self.has_scaled = True
            both = multi.limit(*limits)
        else:
            both = multi.norms()
        return both[: self._total], both[self._total :]

    def scale(self, coefs: Tensor) -> None:
        """Multiply the units that are not in :attr:`rest` by ``coefs`` (U,), in place."""
        assert self._multi is not None
        if not self.has_scaled:
            self._multi.scale(coefs, len(self._indices))
