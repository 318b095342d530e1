"""The units of gradients and of weights, measured together."""

from __future__ import annotations

import itertools

from torch import Tensor

from .host_tensors import HostTensors
from .multi_tensor import MultiTensor, Units


class UnitTensors:
    """Measures and scales the units of gradients, numbered through in a given order.

    Units that are not runs of memory (those of a transposed convolution) are left to the caller:
    :attr:`rest` names them.

    Args:
        grads: N gradients.
        params: the N parameters.
        runs: for each, how many units it has and the elements of each, if every unit is a run of
            memory; None if not.
        sizes: for each, how many units it has.
        order: the places of the N gradients, in the order that numbers the units.
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
        starts = [0, *itertools.accumulate(sizes[i] for i in order)]
        self._total = starts[-1]
        self._places: list[int] = []
        #: (place, its units as a slice of the flat vector) of the gradients left to the caller.
        self.rest: list[tuple[int, slice]] = []
        of_grads: list[Units] = []
        for i, start in zip(order, starts, strict=False):
            run = runs[i]
            if run is None:
                self.rest.append((i, slice(start, start + sizes[i])))
            else:
                self._places.append(i)
                of_grads.append(Units(start, *run))
        of_weights = [unit._replace(first=self._total + unit.first) for unit in of_grads]
        self._multi: MultiTensor | HostTensors | None = None
        if self._places:
            both = self._both(grads, params)
            self._multi = kind(of_grads + of_weights, both, 2 * self._total)
        # Units are cut by the shape of the parameter: a gradient of another shape has other memory.
        self._match = all(grads[i].shape == params[i].shape for i in self._places)
        #: Whether :meth:`measure` has scaled the gradients that are not in :attr:`rest`.
        self.has_scaled = False

    def _both(self, grads: list[Tensor], params: list[Tensor]) -> list[Tensor]:
        return [grads[i] for i in self._places] + [params[i] for i in self._places]

    def fits(self, grads: list[Tensor], params: list[Tensor]) -> bool:
        """Whether gradients and weights have the shapes that the tables were made for."""
        return self._multi is None or self._multi.fits(self._both(grads, params))

    def take(self, grads: list[Tensor], params: list[Tensor]) -> bool:
        """Work on these tensors from now on; False if the kernels cannot."""
        self.has_scaled = False
        return (
            self._multi is not None and self._match and self._multi.take(self._both(grads, params))
        )

    def has(self, grads: list[Tensor]) -> bool:
        """Whether these gradients lie at the addresses that :meth:`take` was given."""
        assert self._multi is not None
        return self._multi.has([grads[i] for i in self._places])

    def measure(self, limits: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
        """Norms of the units of gradients and weights, both (U,) float64.

        What belongs to :attr:`rest` is undefined; the caller writes it.

        Args:
            limits: (floor, factor): units may be scaled down to ``factor * max(weight, floor)`` in
                the same pass; :attr:`has_scaled` tells whether that was done.
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
        """Multiply the units that are not in :attr:`rest` by their coefficients (U,), in place."""
        assert self._multi is not None
        if not self.has_scaled:
            self._multi.scale(coefs, len(self._places))
