"""What a step does to each module, read off the gradients and weights around the clipping."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...clipping.base import Measure, Outcome
from ...clipping.gradients.names import ParamInfo, describe_params
from ...clipping.step.observers import StepObserver, parameter_norms
from ...clipping.step.parameters import RoutedView

# A unit counts as clipped when its norm shrank by more than rounding.
_SHRUNK = 1 - 1e-5


class ModuleStats(NamedTuple):
    """One step, module by module: M modules that own parameters, in the model's order.

    Attributes:
        names: dotted names of the M modules; ``'(root)'`` for parameters of the model itself.
        grad: (M,) norm of the module's gradient before clipping; 0 where it has none.
        weight: (M,) norm of its weights before the step.
        update: (M,) norm of the change that the step made to them.
        clipped: (M,) how many of its units were clipped.
        units: (M,) how many units it has (:mod:`gclip_mm.clipping.gradients.units`).
    """

    names: list[str]
    grad: np.ndarray
    weight: np.ndarray
    update: np.ndarray
    clipped: np.ndarray
    units: np.ndarray

    def grouped(self, depth: int) -> ModuleStats:
        """The same for modules cut at ``depth`` parts of their names."""
        keys = [cut_name(name, depth) for name in self.names]
        names = list(dict.fromkeys(keys))
        index = np.array([names.index(key) for key in keys])

        def add(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values, len(names))

        squares = (np.sqrt(add(x.astype(float) ** 2)) for x in self[1:4])
        return ModuleStats(names, *squares, add(self.clipped), add(self.units))


class UnitNorms(NamedTuple):
    """Norms of all units of one module before clipping and before the step.

    Attributes:
        grad: (U,) of the gradients.
        weight: (U,) of the weights.
    """

    grad: Tensor
    weight: Tensor


class ModuleProbe(StepObserver):
    """Watches the one step it is armed for; in all others it does nothing.

    Args:
        optimizer: the optimizer.
        model: gives the parameters their names.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._model = model
        self.armed = False
        self._infos: list[ParamInfo] = []
        self._modules: list[str] = []
        self._index: Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        self._grads: list[tuple[int, Tensor]] = []
        self._norms: Tensor | None = None
        self._before: list[Tensor] = []
        self._units: dict[int, Tensor] = {}
        self._weight_units: dict[int, Tensor] = {}
        self._clipped: list[Tensor] | None = None

    # -- around the clipping ---------------------------------------------------------------------
    def before_clip(
        self,
        views: list[RoutedView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        """Norms of gradients and weights, and a copy of the weights."""
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
        """Which units were clipped."""
        if not self.armed or self._norms is None:
            return
        clipped = [self._norms.new_zeros(()) for _ in self._infos]
        for (_, view), outcome in zip(views, outcomes, strict=True):
            coef = None if outcome is None else outcome.coef
            for i, info, grad in zip(view.positions, view.infos, view.grads, strict=True):
                before = self._units[i]
                if coef is not None:
                    # Perhaps folded into the optimizer, and then not seen in the gradient.
                    clipped[i] = (coef < 1) * before.numel()
                else:
                    clipped[i] = (info.layout.norms(grad) < before * _SHRUNK).sum()
        self._clipped = clipped

    # -- after the step --------------------------------------------------------------------------
    @property
    def has_seen(self) -> bool:
        """Whether a step was watched to its end; one skipped for a non-finite gradient is not."""
        return self._clipped is not None

    def read(self, with_units: bool = False) -> tuple[ModuleStats, dict[str, UnitNorms]]:
        """The step that was watched; the host waits for the device once. Disarms.

        Args:
            with_units: return the norms of the units, by module, as well.
        """
        device = self._norms.device
        now = [info.param.detach() for info in self._infos]
        weight = torch.stack([_norm(w, device) for w in self._before])
        torch._foreach_sub_(self._before, now)
        update = torch.stack([_norm(w, device) for w in self._before])
        clipped = torch.stack([c.to(device, torch.float64) for c in self._clipped])
        sums = torch.zeros(4, len(self._modules), dtype=torch.float64, device=device)
        rows = torch.stack([self._norms.square(), weight.square(), update.square(), clipped])
        sums.index_add_(1, self._index.to(device), rows)
        grad2, weight2, update2, clipped_units = sums.cpu().numpy()
        units = np.bincount(
            self._index.cpu().numpy(),
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
        )
        norms = self._unit_norms() if with_units else {}
        self.armed = False
        self._forget()
        return stats, norms

    def _unit_norms(self) -> dict[str, UnitNorms]:
        scale = 1.0 if self._scale is None else self._scale
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
    """The module that owns a parameter."""
    return info.name.rpartition('.')[0] or '(root)'


def cut_name(name: str, depth: int) -> str:
    """The first ``depth`` parts of a dotted name."""
    return '.'.join(name.split('.')[:depth])


def _norm(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).to(device)
