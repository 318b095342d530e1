"""Writes the effect of clipping on each module to the visualizer's backends."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend, Visualizer
from torch import Tensor

from ...clipping.checks import check_number
from ..telemetry.histograms import log_histograms, publish
from ..telemetry.module_probe import ModuleProbe, ModuleStats, UnitNorms, cut_name
from ..telemetry.observing import iterations_of_a_step, observe, refuse_sharded, wrapper_members
from .keys import reject_unknown_keys

#: Files of the local backend: the numbers, and the units that were held back most.
SCALARS = 'module_scalars.json'
UNITS = 'clipped_units.json'


@HOOKS.register_module()
@reject_unknown_keys
class GClipMonitorHook(Hook):
    """Measures one step in ``interval`` by module, and warns of modules that have stopped learning.

    Works with ``GClipOptimWrapper``, with ``GClipHook`` and with a stock wrapper. A measured step
    reads gradients and weights a few times and makes the host wait for the device once. In any
    other step the hook only stores two references. Only the main process measures, because after
    the all-reduce every process has the same gradients.

    The hook writes these numbers to every backend of the visualizer, but not to the terminal. The
    local backend writes them to ``module_scalars.json`` beside ``scalars.json``. ``<module>`` is a
    name cut at ``depth`` parts, such as ``backbone.layer1``; with an ``OptimWrapperDict`` each name
    begins with the member's name:

    * ``module_grad_norm.<module>``: norm of its gradient before clipping;
    * ``module_update_ratio.<module>``: norm of the step's change over the norm of the weights;
    * ``module_clip_fraction.<module>``: share of its units (output filters, rows, whole vectors)
      whose gradient was made smaller, or whose movement, where the rule bounds updates;
    * ``module_clip_coef.<module>``: the smallest share that one of its units kept;
    * ``loss_interval_grad_norm.q<k>`` and ``loss_interval_end.q<k>``: the steps since the last
      report, sorted by loss into ``loss_intervals`` groups of equal size: mean gradient norm of
      each group, and the largest loss in it. If only the last group has a high norm, hard or
      mislabelled samples cause the large gradients, not the state of training.

    The units that were held back most go to ``clipped_units.json`` beside ``scalars.json``, a line
    for each measured step: ``[parameter, unit, share kept]``, one unit of each parameter. ``gclip
    plot WORK_DIR --modules`` draws both.

    Every ``histogram_interval`` iterations the hook also writes histograms of the units' gradient
    norms (``unit_grad_norm``) and of their ratio to the weights (``unit_grad_to_weight``, which
    AGC's ``clip_factor`` bounds): as histograms to TensorBoard and Weights & Biases, as an image to
    any other backend.

    The hook warns once for each module until it recovers, after ``patience`` measured steps in a
    row in which the module is

    * dead: its gradient is exactly zero, or it has none;
    * vanishing: its gradient is less than ``vanishing`` times its weights.

    Args:
        interval: iterations from one measured step to the next, at least 1.
        histogram_interval: iterations between histograms, of the next measured step; 0: none.
        depth: number of parts of a module's name in the report, at least 1.
        loss_intervals: number of groups of steps by loss, at least 2; 0: none.
        vanishing: ratio of gradient to weights below which a module counts as vanishing.
        patience: measured steps in a row before a warning, at least 1.

    Raises:
        ClipConfigError: an unknown key, or a value out of range.
        ValueError: sharded parameters (FSDP, tensor parallelism), when training starts.

    Example:
        >>> custom_hooks = [dict(type='GClipMonitorHook', interval=50, depth=2)]
    """

    # After a hook that clips, and before the checkpoint.
    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        interval: int = 50,
        histogram_interval: int = 500,
        depth: int = 2,
        loss_intervals: int = 4,
        vanishing: float = 1e-7,
        patience: int = 3,
    ) -> None:
        where = 'GClipMonitorHook'
        check_number('interval', interval, low=1, integer=True, where=where)
        check_number('histogram_interval', histogram_interval, low=0, integer=True, where=where)
        check_number('depth', depth, low=1, integer=True, where=where)
        check_number('loss_intervals', loss_intervals, low=0, integer=True, where=where)
        check_number('vanishing', vanishing, low=0, where=where)
        check_number('patience', patience, low=1, integer=True, where=where)
        self.interval = interval
        self.histogram_interval = histogram_interval
        self.depth = depth
        self.loss_intervals = loss_intervals
        self._probes: dict[str, _Probe] = {}
        self._watches: dict[str, _LearningWatch] = {}
        self._make_watch = lambda: _LearningWatch(vanishing, patience)
        self._detach: Callable[[], None] = lambda: None

    def before_train(self, runner: Runner) -> None:
        """Attach to the optimizers; hooks that clip have attached their engines in ``before_run``.

        Raises:
            ValueError: the model has sharded parameters.
        """
        refuse_sharded(runner, 'GClipMonitorHook')
        if not is_main_process():
            return
        members = wrapper_members(runner.optim_wrapper)
        self._probes = {name: _Probe(member, runner) for name, member in members.items()}
        self._watches = {name: self._make_watch() for name in members}
        self._detach = observe(runner, self._probes)

    def after_train(self, runner: Runner) -> None:
        """Detach."""
        self._detach()
        self._probes.clear()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Arm the probes; with accumulated gradients the step may follow some iterations later."""
        if self.every_n_train_iters(runner, self.interval):
            for probe in self._probes.values():
                probe.armed = True

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Report the step, if one was measured."""
        loss = (outputs or {}).get('loss')
        loss = None if loss is None else torch.as_tensor(loss).detach()
        for name, probe in self._probes.items():
            probe.end_iteration(loss)
            if probe.armed and probe.has_seen:
                self._report(runner, f'{name}.' if name else '', name, probe)

    def _report(self, runner: Runner, prefix: str, name: str, probe: _Probe) -> None:
        step = runner.iter + 1
        wants_units = bool(self.histogram_interval) and (
            step // self.histogram_interval > (step - self.interval) // self.histogram_interval
        )
        stats, units = probe.read(with_units=wants_units)
        scalars = module_scalars(stats.grouped(self.depth))
        if self.loss_intervals:
            scalars.update(loss_interval_scalars(*probe.take_history(), self.loss_intervals))
        scalars = {f'{prefix}{k}': v for k, v in scalars.items() if math.isfinite(v)}
        _write(runner.visualizer, scalars, step)
        held = [[f'{prefix}{name}', unit, kept] for name, unit, kept in stats.held]
        _write_held(runner.visualizer, held, step)
        if wants_units:
            for title, values in unit_quantities(units, self.depth).items():
                publish(runner.visualizer, f'{prefix}{title}', log_histograms(values), step)
        for message in self._watches[name](stats):
            runner.logger.warning(f'GClipMonitorHook, iteration {step}: {message}')


def _write(visualizer: Visualizer, scalars: dict[str, float], step: int) -> None:
    """Write scalars to every backend; the local one writes them to a separate file.

    MMDetection's ``analyze_logs.py`` assumes that each line of ``scalars.json`` is a step with a
    loss.
    """
    for backend in visualizer._vis_backends.values():
        if not isinstance(backend, LocalVisBackend):
            backend.add_scalars(dict(scalars), step=step)
            continue
        _append(backend, SCALARS, {**scalars, 'step': step})


def _write_held(visualizer: Visualizer, units: list[list[Any]], step: int) -> None:
    """Write the units that were held back most; only the local backend has a place for them."""
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, LocalVisBackend):
            _append(backend, UNITS, {'step': step, 'units': units})


def _append(backend: LocalVisBackend, name: str, row: dict[str, Any]) -> None:
    # Reading the property creates the folder.
    folder = Path(backend.experiment._save_dir)
    with (folder / name).open('a') as file:
        file.write(json.dumps(row) + '\n')


class _Probe(ModuleProbe):
    """A module probe that also keeps the norm and loss of every step, on the device.

    Args:
        wrapper: the optimizer wrapper to measure.
        runner: the runner; its model names the parameters.
    """

    def __init__(self, wrapper: OptimWrapper, runner: Runner) -> None:
        super().__init__(wrapper.optimizer, runner.model)
        self._records: list[Tensor] = []
        self._losses: deque[Tensor] = deque(maxlen=iterations_of_a_step(wrapper))
        self._steps: list[tuple[Tensor, list[Tensor]]] = []

    def on_record(self, record: Tensor) -> None:
        """Keep the record (6,) of a step until its iteration ends."""
        self._records.append(record)

    def end_iteration(self, loss: Tensor | None) -> None:
        """Assign losses to steps: several iterations may make one step, one may make several.

        Args:
            loss: 0-d, the loss of the iteration; None: the model reported none.
        """
        if loss is not None:
            self._losses.append(loss)
        if self._records:
            losses = list(self._losses)
            self._steps += [(record, losses) for record in self._records]
            self._records = []
            self._losses.clear()

    def take_history(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses and norms (S,) of the steps since the last call; one copy from the device."""
        pairs = [
            torch.stack([torch.stack(losses).double().mean().to(record.device), record[0]])
            for record, losses in self._steps
            if losses
        ]
        self._steps = []
        if not pairs:
            return np.empty(0), np.empty(0)
        losses, norms = torch.stack(pairs).cpu().numpy().T
        return losses, norms


def module_scalars(stats: ModuleStats) -> dict[str, float]:
    """The numbers of a step under the names that :class:`GClipMonitorHook` writes."""
    scalars = {}
    for i, name in enumerate(stats.names):
        scalars[f'module_grad_norm.{name}'] = float(stats.grad[i])
        if stats.weight[i] > 0:
            scalars[f'module_update_ratio.{name}'] = float(stats.update[i] / stats.weight[i])
        scalars[f'module_clip_fraction.{name}'] = float(stats.clipped[i] / stats.units[i])
        scalars[f'module_clip_coef.{name}'] = float(stats.kept[i])
    return scalars


def loss_interval_scalars(losses: np.ndarray, norms: np.ndarray, groups: int) -> dict[str, float]:
    """Mean norm and largest loss of the steps, sorted by loss into groups of equal size.

    Args:
        losses: (S,), losses of S steps.
        norms: (S,), their gradient norms; steps where either is not finite are left out.
        groups: number of groups.

    Returns:
        dict: the numbers by name; empty if a group would have less than two steps.
    """
    finite = np.isfinite(losses) & np.isfinite(norms)
    losses, norms = losses[finite], norms[finite]
    if len(losses) < 2 * groups:
        return {}
    order = np.argsort(losses, kind='stable')
    scalars = {}
    for k, part in enumerate(np.array_split(order, groups), 1):
        scalars[f'loss_interval_grad_norm.q{k}'] = float(norms[part].mean())
        scalars[f'loss_interval_end.q{k}'] = float(losses[part].max())
    return scalars


def unit_quantities(units: dict[str, UnitNorms], depth: int) -> dict[str, dict[str, Tensor]]:
    """The values of the histograms: by title and module name, (U,) for the module's units."""
    quantities: dict[str, dict[str, list[Tensor]]] = {
        'unit_grad_norm': {},
        'unit_grad_to_weight': {},
    }
    for name, norms in units.items():
        key = cut_name(name, depth)
        quantities['unit_grad_norm'].setdefault(key, []).append(norms.grad)
        # A weight of zero, such as a new bias, has no scale to compare with.
        ratio = (norms.grad / norms.weight)[norms.weight > 0]
        quantities['unit_grad_to_weight'].setdefault(key, []).append(ratio)
    return {
        title: {name: torch.cat(parts) for name, parts in modules.items()}
        for title, modules in quantities.items()
    }


class _LearningWatch:
    """Counts, for each module, measured steps in a row without a usable gradient.

    Args:
        vanishing: ratio of gradient to weights below which a gradient counts as vanishing.
        patience: measured steps in a row before a warning.
    """

    def __init__(self, vanishing: float, patience: int) -> None:
        self._vanishing = vanishing
        self._patience = patience
        self._counts: dict[str, dict[str, int]] = {'dead': {}, 'vanishing': {}}

    def __call__(self, stats: ModuleStats) -> list[str]:
        """The warnings after this step."""
        found = {
            'dead': stats.grad == 0,
            'vanishing': (stats.grad > 0) & (stats.grad < self._vanishing * stats.weight),
        }
        messages = []
        for kind, bad in found.items():
            counts = self._counts[kind]
            for name, is_bad in zip(stats.names, bad, strict=True):
                counts[name] = counts.get(name, 0) + 1 if is_bad else 0
            fresh = [name for name in stats.names if counts[name] == self._patience]
            if fresh:
                messages.append(f'{self._describe(kind)} {_list(fresh)}')
        return messages

    def _describe(self, kind: str) -> str:
        times = f'in {self._patience} measured steps in a row'
        if kind == 'dead':
            return f'dead modules, no gradient {times}:'
        return f'vanishing gradient, below {self._vanishing:g} of the weights {times}:'


def _list(names: list[str], most: int = 8) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
