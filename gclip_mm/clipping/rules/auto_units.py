"""What ``Auto`` knows of the units of a view."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.norm_layers import is_live, is_norm_layer
from ..gradients.view import GradView

#: Kaiming's initialisation gives every row and filter a norm of sqrt(2), whatever its fan-in.
FLOOR_ROW = 1.5
#: Where a live norm follows, the output does not depend on the size, and small weights may stay so.
FLOOR_NORMALIZED = 0.01
#: Root mean square of a vector of gains at their start.
FLOOR_VECTOR = 1.0


class AutoUnits:
    """Floors, learning rates and surroundings of the U units of a view.

    Args:
        view: the gradients.
        groups: the parameter group of each of the N parameters.
        norms: the normalisation layer behind each of them, or None.
    """

    def __init__(
        self,
        view: GradView,
        groups: list[dict[str, Any]],
        norms: list[nn.Module | None],
    ) -> None:
        owner = view.backend.unit_owner
        device = owner.device
        self._owner = owner
        self._norms = norms
        self._groups = list({id(group): group for group in groups}.values())
        place = {id(group): i for i, group in enumerate(self._groups)}
        self._group_of = torch.tensor([place[id(g)] for g in groups], device=device)[owner]
        self._rates: tuple[tuple[float, ...], Tensor] | None = None
        self._numels = [info.param.numel() for info in view.infos]
        self._is_weight = [layout.dims is not None for layout in view.layouts]
        # A norm layer's own gains and biases, whose layer follows nothing.
        modules = [info.module for info in view.infos]
        self._own = [module if is_norm_layer(module) else None for module in modules]
        used = {id(module): module for module in (*norms, *self._own) if module is not None}
        self._used = list(used.values())
        self._modes: list[bool] | None = None
        #: (U,) bool, units of parameters that no live norm layer follows.
        self.loose: Tensor = torch.zeros(0)
        #: (N,) bool, the weights among those parameters.
        self.counts: Tensor = torch.zeros(0)
        self.has_loose = False

    def refresh(self) -> None:
        """Look again which norm layers are at work; they may be switched during training."""
        modes = [norm.training for norm in self._used]
        if modes == self._modes:
            return
        self._modes = modes
        pairs = zip(self._norms, self._own, strict=True)
        loose = [not (is_live(norm) or is_live(own)) for norm, own in pairs]
        device = self._owner.device
        self.loose = torch.tensor(loose, device=device)[self._owner]
        columns = loose, self._is_weight, self._numels
        floors = [_floor(*row) for row in zip(*columns, strict=True)]
        self._floor = torch.tensor(floors, dtype=torch.float64, device=device)[self._owner]
        counts = [a and b for a, b in zip(loose, self._is_weight, strict=True)]
        self.counts = torch.tensor(counts, device=device)
        self.has_loose = any(counts)

    def sizes(self, weights: Tensor) -> Tensor:
        """The sizes (U,) float64 that steps are measured against."""
        return torch.maximum(weights.double(), self._floor.to(weights.device))

    def rates(self, gain: Callable[[dict[str, Any]], float]) -> Tensor:
        """A number for each unit, (U,) float64, given one for each parameter group."""
        numbers = tuple(map(gain, self._groups))
        if self._rates is None or self._rates[0] != numbers:
            table = torch.tensor(numbers, dtype=torch.float64, device=self._owner.device)
            self._rates = numbers, table[self._group_of]
        return self._rates[1]


def _floor(is_loose: bool, is_weight: bool, numel: int) -> float:
    """The least size of a unit of a parameter."""
    if not is_weight:
        return FLOOR_VECTOR * math.sqrt(numel)
    return FLOOR_ROW if is_loose else FLOOR_NORMALIZED
