"""The kernels for AGC: the gradients' and the weights' units are measured together."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .host_tensors import HostTensors
from .multi_tensor import Units

if TYPE_CHECKING:
    from ..gradients.view import GradView
    from .multi_tensor import MultiTensor


class UnitKernels:
    """Measures and scales the units of a view's gradients, numbered through in a given order.

    Where the units of a parameter are no runs of memory (those of a transposed convolution) it goes
    the ordinary way, and the others do not have to.

    Args:
        view: the gradients and their unit layouts.
        order: the places in the view of the N gradients, in the order that numbers the units.
        kind: what does the work, by where the gradients are.
    """

    def __init__(
        self, view: GradView, order: list[int], kind: type[MultiTensor] | type[HostTensors]
    ) -> None:
        self._layouts = view.layouts
        sizes = [math.prod(view.layouts[i].shape(view.params[i])) for i in order]
        starts = [0, *itertools.accumulate(sizes)]
        total = starts[-1]
        self._places: list[int] = []
        #: (place in the view, its units, as a slice of the flat vector) of those that do not fit.
        self._rest: list[tuple[int, slice]] = []
        of_grads: list[Units] = []
        for i, start, size in zip(order, starts, sizes, strict=False):
            runs = view.layouts[i].runs(view.params[i])
            if runs is None:
                self._rest.append((i, slice(start, start + size)))
            else:
                self._places.append(i)
                of_grads.append(Units(start, *runs))
        of_weights = [unit._replace(first=total + unit.first) for unit in of_grads]
        self._multi = None
        if self._places:
            self._multi = kind(of_grads + of_weights, self._fitting(view), 2 * total)
        self._total = total
        # Units are cut by the parameter's shape: a gradient of another has other memory.
        shapes = [(view.grads[i].shape, view.params[i].shape) for i in self._places]
        self._match = all(grad == param for grad, param in shapes)
        #: Norms of the weights' units (U,) float64, set by :meth:`measure`.
        self.weights: Tensor | None = None
        #: Whether :meth:`measure` has scaled already what lies as the kernels expect.
        self.has_scaled = False

    def _fitting(self, view: GradView) -> list[Tensor]:
        params = view.params
        return [view.grads[i] for i in self._places] + [params[i] for i in self._places]

    def fits(self, view: GradView) -> bool:
        """Whether gradients and weights have the shapes that this was made for."""
        return self._multi is None or self._multi.fits(self._fitting(view))

    def take(self, view: GradView) -> bool:
        """Whether the kernels can work on the gradients that are in the view now."""
        return self._multi is not None and self._match and self._multi.take(self._fitting(view))

    def has(self, view: GradView) -> bool:
        """Whether the gradients in the view are those that were there for :meth:`take`."""
        return self._multi.has([view.grads[i] for i in self._places])

    def measure(self, view: GradView, limits: tuple[float, float] | None = None) -> Tensor:
        """Norms of the gradients' units, (U,) float64; sets :attr:`weights`.

        Args:
            view: the gradients.
            limits: AGC's ``eps`` and ``clip_factor``, if units may be scaled down to their limits
                at once; :attr:`has_scaled` says whether that was done.
        """
        multi = self._multi
        can_limit = isinstance(multi, HostTensors) and multi.can_limit
        self.has_scaled = limits is not None and can_limit
        both = multi.limit(*limits) if self.has_scaled else multi.norms()
        norms, self.weights = both[: self._total], both[self._total :]
        for i, where in self._rest:
            for tensor, flat in ((view.grads[i], norms), (view.params[i], self.weights)):
                flat[where] = self._layouts[i].norms(tensor, torch.float64).reshape(-1)
        return norms

    def scale(self, view: GradView, coefs: Tensor) -> None:
        """Multiply every unit of the gradients in place by its coefficient (U,), unless done."""
        if not self.has_scaled:
            self._multi.scale(coefs, len(self._places))
        for i, where in self._rest:
            layout, grad = self._layouts[i], view.grads[i]
            layout.split(grad).mul_(coefs[where].view(layout.shape(grad)))
