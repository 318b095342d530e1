"""Measures the effect of a step on each module: gradients, weights and clipped units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...clipping.base import Measure, Outcome, Update
from ...clipping.gradients.names import ParamInfo, describe_params
from ...clipping.step.observers import StepObserver, parameter_norms
from ...clipping.step.parameters import RoutedView

# A unit counts as clipped when its norm shrank by more than rounding.
_SHRUNK = 1 - 1e-5


#: How many of the units that were held back most are reported.
MOST_HELD = 10


class HeldUnit(NamedTuple):
    """A unit that clipping has held back.

    Attributes:
        name: name of its parameter.
        unit: its index among the units of the parameter.
        kept: share of its gradient, or of its movement, that was kept.
    """

    name: str
    unit: int
    kept: float


class ModuleStats(NamedTuple):
    """Measurements of one step for M modules that own parameters, in the model's order.

    Attributes:
        names: dotted names of the M modules; ``'(root)'`` for parameters of the model itself.
        grad: (M,) float64, norm of the module's gradient before clipping; 0 without a gradient.
        weight: (M,) float64, norm of its weights before the step.
        update: (M,) float64, norm of the change of its weights in the step.
        clipped: (M,) float64, number of its clipped units.
        units: (M,) float64, number of its units (:mod:`gclip_mm.clipping.gradients.units`).
        kept: (M,) float64, the smallest share of its gradient, or of its movement where the rule
            bounds updates, that a unit kept; 1 where nothing was clipped.
        held: the units that were held back most, one of each parameter, the smallest share first.
    """

    names: list[str]
    grad: np.ndarray
    weight: np.ndarray
    update: np.ndarray
    clipped: np.ndarray
    units: np.ndarray
    kept: np.ndarray
    held: tuple[HeldUnit, ...] = ()

    def grouped(self, depth: int) -> ModuleStats:
        """The measurements of modules joined by the first ``depth`` parts of their names."""
        keys = [cut_name(name, depth) for name in self.names]
        names = list(dict.fromkeys(keys))
        index = np.array([names.index(key) for key in keys])

        def add(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values, len(names))

        squares = (np.sqrt(add(x.astype(float) ** 2)) for x in self[1:4])
        grad, weight, update = squares
        kept = np.ones(len(names))
        np.minimum.at(kept, index, self.kept)
        counts = add(self.clipped), add(self.units)
        return ModuleStats(names, grad, weight, update, *counts, kept, self.held)


class UnitNorms(NamedTuple):
    """Norms of all units of one module before clipping and before the step.

    Attributes:
        grad: (U,) of the gradients.
        weight: (U,) of the weights.
    """

    grad: Tensor
    weight: Tensor


class ModuleProbe(StepObserver):
    """Measures a step if ``armed`` is set; otherwise it does nothing.

    Args:
        optimizer: the optimizer.
        model: the model that names the parameters.

    Attributes:
        armed: whether the next step is measured; :meth:`read` sets it to False.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._model = model
        self.armed = False
        self._infos: list[ParamInfo] = []
        self._modules: list[str] = []
        self._index: Tensor | None = None
        self._scale: Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        self._grads: list[tuple[int, Tensor]] = []
        self._norms: Tensor | None = None
        self._before: list[Tensor] = []
        self._units: dict[int, Tensor] = {}
        self._weight_units: dict[int, Tensor] = {}
        # By index of the parameter: the shares (U,) that its units kept.
        self._kept: dict[int, Tensor] = {}
        self._clipped: list[Tensor] | None = None

    # -- around the clipping ---------------------------------------------------------------------
    def before_clip(
        self,
        views: list[RoutedView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        """Measure norms of gradients and weights, and copy the weights."""
        if not self.armed:
            return
        self._forget()
        self._describe()
        where = [i for _, view in views for i in view.positions]
        norms = torch.cat(
            [parameter_norms(v, m, scale).double() for v, m in zip(views, measures, strict=True)]
        )
        self._norms = norms.new_zeros(len(self._infos))
        self._norms[torch.tensor(where, device=norms.device)] = norms
        self._scale = scale
        self._before = [info.param.detach().clone() for info in self._infos]
        for _, view in views:
            for i, info, grad in zip(view.positions, view.infos, view.grads, strict=True):
                self._units[i] = info.layout.norms(grad)
                self._weight_units[i] = info.layout.norms(info.param.detach())

    def after_clip(self, views: list[RoutedView], outcomes: list[Outcome | None]) -> None:
        """Count the clipped units, and measure what each unit kept of its gradient."""
        if not self.armed or self._norms is None:
            return
        clipped = [self._norms.new_zeros(()) for _ in self._infos]
        for (_, view), outcome in zip(views, outcomes, strict=True):
            coef = None if outcome is None else outcome.coef
            for i, info, grad in zip(view.positions, view.infos, view.grads, strict=True):
                before = self._units[i]
                if coef is not None:
                    # If the coefficient is folded into the optimizer, the gradient is unchanged.
                    kept = coef.to(before.device).expand(before.numel())
                    clipped[i] = (coef < 1) * before.numel()
                else:
                    after = info.layout.norms(grad)
                    kept = torch.where(before > 0, after / before, 1.0).flatten()
                    clipped[i] = (after < before * _SHRUNK).sum()
                self._kept[i] = kept.double().clamp(max=1.0)
        self._clipped = clipped

    def after_update(self, part: RoutedView, update: Update) -> None:
        """Count the units whose movement was shortened, and measure what they kept of it."""
        if not self.armed or self._clipped is None:
            return
        view = part.view
        order = torch.argsort(view.backend.unit_owner, stable=True)
        shares = torch.split(update.coefs[order.to(update.coefs.device)], view.backend.unit_sizes)
        for i, share in zip(view.positions, shares, strict=True):
            self._clipped[i] = (share < _SHRUNK).sum()
            self._kept[i] = share.double()

    # -- after the step --------------------------------------------------------------------------
    @property
    def has_seen(self) -> bool:
        """Whether a step was measured completely; a step skipped as non-finite is not."""
        return self._clipped is not None

    def read(self, with_units: bool = False) -> tuple[ModuleStats, dict[str, UnitNorms]]:
        """The measurements of the step; the host waits for the device once. Disarms the probe.

        Call it only if :attr:`has_seen`.

        Args:
            with_units: also return the norms of the units.

        Returns:
            tuple: the measurements of the modules; the norms of the units by module, or ``{}``.
        """
        assert self._norms is not None and self._clipped is not None and self._index is not None
        device = self._norms.device
        now = [info.param.detach() for info in self._infos]
        weight = torch.stack([_norm(w, device) for w in self._before])
        torch._foreach_sub_(self._before, now)
        update = torch.stack([_norm(w, device) for w in self._before])
        clipped = torch.stack([c.to(device, torch.float64) for c in self._clipped])
        sums = torch.zeros(4, len(self._modules), dtype=torch.float64, device=device)
        rows = torch.stack([self._norms.square(), weight.square(), update.square(), clipped])
        sums.index_add_(1, self._index.to(device), rows)
        places = [i for i, kept in self._kept.items() if kept.numel()]
        least = [self._kept[i].min(0) for i in places]
        numbers = [value.to(device, torch.float64) for pair in least for value in pair]
        # One copy for everything.
        found = torch.cat([sums.flatten(), *(number.view(1) for number in numbers)]).cpu().numpy()
        grad2, weight2, update2, clipped_units = found[: sums.numel()].reshape(sums.shape)
        pairs = found[sums.numel() :].reshape(-1, 2)
        index = self._index.cpu().numpy()
        kept = np.ones(len(self._modules))
        np.minimum.at(kept, index[places], pairs[:, 0])
        units = np.bincount(
            index,
            [np.prod(info.layout.shape(info.param), dtype=float) for info in self._infos],
            len(self._modules),
        )
        stats = ModuleStats(
            self._modules,
            np.sqrt(grad2),
            np.sqrt(weight2),
            np.sqrt(update2),
            clipped_units,
            units,
            kept,
            self._held(places, pairs),
        )
        norms = self._unit_norms() if with_units else {}
        self.armed = False
        self._forget()
        return stats, norms

    def _held(self, places: list[int], pairs: np.ndarray) -> tuple[HeldUnit, ...]:
        """The units that kept least, given the smallest share and its unit for each parameter."""
        found = [
            HeldUnit(self._infos[i].name, int(unit), float(kept))
            for i, (kept, unit) in zip(places, pairs, strict=True)
            if kept < _SHRUNK
        ]
        return tuple(sorted(found, key=lambda held: held.kept)[:MOST_HELD])

    def _unit_norms(self) -> dict[str, UnitNorms]:
        scale: Tensor | float = 1.0 if self._scale is None else self._scale
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for i, norms in self._units.items():
            pair = (norms.flatten() / scale, self._weight_units[i].flatten())
            found.setdefault(module_name(self._infos[i]), []).append(pair)
        return {
            name: UnitNorms(*(torch.cat(side) for side in zip(*pairs, strict=True)))
            for name, pairs in found.items()
        }

    def _describe(self) -> None:
        params = [p for group in self._optimizer.param_groups for p in group['params']]
        if len(params) == len(self._infos) and all(
            info.param is param for info, param in zip(self._infos, params, strict=True)
        ):
            return
        self._infos = describe_params(params, self._model)
        names = [module_name(info) for info in self._infos]
        self._modules = list(dict.fromkeys(names))
        self._index = torch.tensor([self._modules.index(name) for name in names])


def module_name(info: ParamInfo) -> str:
    """The name of the module that owns a parameter; ``(root)`` for the model itself."""
    return info.name.rpartition('.')[0] or '(root)'


def cut_name(name: str, depth: int) -> str:
    """The first ``depth`` parts of a dotted name: ``cut_name('a.b.c', 2) == 'a.b'``."""
    return '.'.join(name.split('.')[:depth])


def _norm(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).to(device)
