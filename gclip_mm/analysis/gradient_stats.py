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


class GradientStats(NamedTuple):
    """S unclipped steps, of P parameters with U units.

    Only parameters with several units (filters, rows) have entries in ``unit_ratio``. Biases and
    the gains of norm layers start at 0 or 1, so that their norm is no scale for a gradient; they
    count in ``grad`` and ``elements`` only.

    Attributes:
        names: names of the P parameters.
        has_scale: (P,) whether the parameter has several units.
        lr_mult: (P,) learning rate of the parameter over the base rate.
        weight: (S, P) norms of the weights before the step.
        grad: (S, P) norms of the gradients; 0 without a gradient.
        unit_ratio: (S, U) ``lr_mult * norm(grad) / max(norm(weight), 1e-3)`` of every unit.
        unit_param: (U,) the place of each unit's parameter among the P.
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
    unit_ratio: np.ndarray
    unit_param: np.ndarray
    elements: np.ndarray
    loss: np.ndarray
    lr: np.ndarray

    @property
    def norm(self) -> np.ndarray:
        """(S,) the global gradient norms."""
        return np.linalg.norm(self.grad, axis=1)

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
    for key in ('weight', 'grad', 'unit_ratio', 'elements'):
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
            raise ValueError(f'{path} holds no gradient statistics')
        arrays = {key: file[key] for key in file.files}
    for key in ('weight', 'grad', 'unit_ratio', 'elements'):
        arrays[key] = arrays[key].astype(np.float64)
    return GradientStats(**{**arrays, 'names': arrays['names'].tolist()})


class GradientRecorder(StepObserver):
    """Records every step of an optimizer that does not clip."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._model = model
        self._infos: list[ParamInfo] = []
        self._rows: list[tuple[Tensor, ...]] = []
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
        ratios, owners = [], []
        mults = self._lr_mults()
        for i, info in enumerate(self._infos):
            w = info.param.detach()
            weight[i] = torch.linalg.vector_norm(w, dtype=torch.float64)
            g = grads.get(i)
            if g is not None:
                elements[i] = _octaves(g, inverse).cpu()
            if _has_scale(info):
                size = info.layout.norms(w).clamp(min=UNIT_EPS)
                units = torch.zeros_like(size) if g is None else info.layout.norms(g) * inverse
                ratios.append((mults[i] * units / size).flatten().cpu())
                owners += [i] * size.numel()
        ratio = torch.cat(ratios) if ratios else torch.zeros(0)
        self._unit_param = owners
        self._rows.append((weight, grad, ratio, elements))
        self._lrs.append(max(group['lr'] for group in self._optimizer.param_groups))

    def end_step(self, loss: float) -> None:
        """Store the loss of the step that was recorded last."""
        self._losses.append(loss)

    def __len__(self) -> int:
        return len(self._rows)

    def stats(self) -> GradientStats:
        """The statistics of all recorded steps."""
        weight, grad, ratio, elements = (
            torch.stack(column).double().numpy() for column in zip(*self._rows, strict=True)
        )
        return GradientStats(
            [info.name for info in self._infos],
            np.array([_has_scale(info) for info in self._infos]),
            np.array(self._lr_mults()),
            weight,
            grad,
            ratio,
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
