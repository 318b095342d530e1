"""Statistics of the gradients of unclipped steps, from which the advisor computes thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..clipping.base import Measure
from ..clipping.gradients.names import ParamInfo, describe_params
from ..clipping.step.observers import StepObserver, parameter_norms
from ..clipping.step.parameters import RoutedView

#: Half-octaves of the size of a gradient's elements: from 2**-60 to 2**20.
OCTAVE_LOW, OCTAVE_HIGH, OCTAVE_BINS = -60, 20, 160
#: Lower bound of the weight norm of a unit, as in AGC.
UNIT_EPS = 1e-3
_LARGE = ('weight', 'grad', 'unit_weight', 'unit_grad', 'unit_move', 'elements')


class GradientStats(NamedTuple):
    """S unclipped steps, of P parameters with U units (AGC's: a filter, a row, a whole bias).

    Attributes:
        names: names of the P parameters.
        has_scale: (P,) whether the parameter has several units.
        lr_mult: (P,) learning rate of the parameter over the base rate.
        weight: (S, P) norms of the weights before the step.
        grad: (S, P) norms of the gradients; 0 without a gradient.
        unit_weight: (S, U) norms of the units of the weights before the step.
        unit_grad: (S, U) norms of the units of the gradients; 0 without a gradient.
        unit_move: (S, U) how far the step moved each unit.
        unit_param: (U,) the place of each unit's parameter among the P, ascending.
        elements: (S, P, OCTAVE_BINS) how many elements have ``log2(abs)`` in each half-octave;
            zeros are not counted.
        loss: (S,) the losses.
        lr: (S,) the rates that the statistics were gathered at.
    """

    names: list[str]
    has_scale: np.ndarray
    lr_mult: np.ndarray
    weight: np.ndarray
    grad: np.ndarray
    unit_weight: np.ndarray
    unit_grad: np.ndarray
    unit_move: np.ndarray
    unit_param: np.ndarray
    elements: np.ndarray
    loss: np.ndarray
    lr: np.ndarray

    @property
    def norm(self) -> np.ndarray:
        """(S,) the global gradient norms."""
        return np.linalg.norm(self.grad, axis=1)

    @property
    def scaled(self) -> np.ndarray:
        """(U,) the units of parameters with several units, to which ``unit_ratio`` is restricted.

        Biases and the gains of norm layers start at 0 or 1, so that their norm is no scale for a
        gradient.
        """
        return self.has_scale[self.unit_param]

    @property
    def unit_ratio(self) -> np.ndarray:
        """(S, R) ``lr_mult * norm(grad) / max(norm(weight), 1e-3)`` of the R scaled units."""
        keep = self.scaled
        sizes = np.maximum(self.unit_weight[:, keep], UNIT_EPS)
        return self.lr_mult[self.unit_param[keep]] * self.unit_grad[:, keep] / sizes

    def of_steps(self, keep: np.ndarray) -> GradientStats:
        """The statistics of some steps, chosen by a mask or by indices."""
        per_step = (*_LARGE, 'loss', 'lr')
        return self._replace(**{key: getattr(self, key)[keep] for key in per_step})

    def value_clipped(self, clip_value: float) -> np.ndarray:
        """(S, P) norms of the gradients if their elements were clamped to ``clip_value``."""
        sizes = np.minimum(octave_sizes(), clip_value) ** 2
        bound = np.sqrt(self.elements @ sizes)
        # The middle of a bin stands for its elements, so the sum can exceed the norm.
        return np.minimum(bound, self.grad)


def octave_sizes() -> np.ndarray:
    """(OCTAVE_BINS,) the size of an element in the middle of each half-octave."""
    edges = np.linspace(OCTAVE_LOW, OCTAVE_HIGH, OCTAVE_BINS + 1)
    return 2.0 ** ((edges[:-1] + edges[1:]) / 2)


def save_stats(stats: GradientStats, path: str | Path) -> None:
    """Write the statistics to a NumPy archive (``.npz``)."""
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in stats._asdict().items()}
    for key in _LARGE:
        # float32 is precise enough, and halves the file.
        arrays[key] = arrays[key].astype(np.float32)
    np.savez_compressed(path, **arrays)


def load_stats(path: str | Path) -> GradientStats:
    """Read what :func:`save_stats` wrote.

    Raises:
        ValueError: the file does not hold gradient statistics.
    """
    with np.load(path, allow_pickle=False) as file:
        if set(file.files) != set(GradientStats._fields):
            raise ValueError(
                f'{path} holds no gradient statistics of this version of gclip_mm; record them '
                'again, without --reuse'
            )
        arrays = {key: file[key] for key in file.files}
    for key in _LARGE:
        arrays[key] = arrays[key].astype(np.float64)
    return GradientStats(**{**arrays, 'names': arrays['names'].tolist()})


class GradientRecorder(StepObserver):
    """Records every step of an optimizer that does not clip."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._model = model
        self._infos: list[ParamInfo] = []
        self._rows: list[tuple[Tensor, ...]] = []
        self._moves: list[Tensor] = []
        self._before: list[Tensor] = []
        self._losses: list[float] = []
        self._lrs: list[float] = []
        self._base_lr = 0.0

    def before_clip(
        self,
        views: list[RoutedView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        """Record norms, unit ratios and element sizes of a step, on the CPU."""
        if not self._infos:
            params = [p for group in self._optimizer.param_groups for p in group['params']]
            self._infos = describe_params(params, self._model)
        view = views[0].view
        inverse = 1.0 if scale is None else 1.0 / scale.item()
        count = len(self._infos)
        grad, weight = torch.zeros(count), torch.zeros(count)
        elements = torch.zeros(count, OCTAVE_BINS)
        grad[view.positions] = parameter_norms(views[0], measures[0], scale).float().cpu()
        grads = dict(zip(view.positions, view.grads, strict=True))
        unit_grads, unit_weights, owners = [], [], []
        for i, info in enumerate(self._infos):
            w = info.param.detach()
            weight[i] = torch.linalg.vector_norm(w, dtype=torch.float64)
            sizes = info.layout.norms(w).flatten().cpu()
            g = grads.get(i)
            norms = torch.zeros_like(sizes)
            if g is not None:
                elements[i] = _octaves(g, inverse).cpu()
                norms = (info.layout.norms(g) * inverse).flatten().cpu()
            unit_grads.append(norms)
            unit_weights.append(sizes)
            owners += [i] * sizes.numel()
        self._unit_param = owners
        self._rows.append((weight, grad, torch.cat(unit_weights), torch.cat(unit_grads), elements))
        self._before = [info.param.detach().clone() for info in self._infos]
        self._lrs.append(max(group['lr'] for group in self._optimizer.param_groups))

    def end_step(self, loss: float) -> None:
        """The step that was recorded last has been taken: store its loss, and how far it moved."""
        self._losses.append(loss)
        pairs = zip(self._infos, self._before, strict=True)
        moved = [
            info.layout.norms(info.param.detach() - old).flatten().cpu() for info, old in pairs
        ]
        self._moves.append(torch.cat(moved))
        self._before = []

    def __len__(self) -> int:
        return len(self._rows)

    def stats(self) -> GradientStats:
        """The statistics of all recorded steps."""
        weight, grad, unit_weight, unit_grad, elements = (
            torch.stack(column).double().numpy() for column in zip(*self._rows, strict=True)
        )
        return GradientStats(
            [info.name for info in self._infos],
            np.array([_has_scale(info) for info in self._infos]),
            np.array(self._lr_mults()),
            weight,
            grad,
            unit_weight,
            unit_grad,
            torch.stack(self._moves).double().numpy(),
            np.array(self._unit_param, dtype=int),
            elements,
            np.array(self._losses),
            np.array(self._lrs),
        )

    def _lr_mults(self) -> list[float]:
        groups = self._optimizer.param_groups
        rates = [group.get('initial_lr', group['lr']) for group in groups]
        base = self._optimizer.defaults['lr']
        return [
            rate / base if base else 1.0
            for rate, group in zip(rates, groups, strict=True)
            for _ in group['params']
        ]


def _has_scale(info: ParamInfo) -> bool:
    return info.layout.dims is not None


def _octaves(grad: Tensor, inverse: float) -> Tensor:
    sizes = grad.detach().float().abs()
    logs = (sizes[sizes > 0] * inverse).log2()
    top = OCTAVE_HIGH - 1e-3
    return torch.histc(logs.clamp(OCTAVE_LOW, top), OCTAVE_BINS, OCTAVE_LOW, OCTAVE_HIGH)
