"""Trains a config for some steps without clipping, at a rate that it survives."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS, Registry
from mmengine.runner import Runner
from torch import Tensor

from ..engine.configs import optim_wrappers
from ..engine.telemetry.observing import observe
from .gradient_stats import GradientRecorder, GradientStats

#: Never clips; skips a non-finite step, which would ruin the weights.
_NO_CLIPPING = dict(type='NormClip', max_norm=1e30, nonfinite='skip')
#: The next rate after a failed one is the failed one divided by this.
_LOWER = 4.0
#: The run has blown up when the loss has risen by this factor, ...
_BLOWN_UP = 3.0
#: ... both losses being medians over this many steps, ...
_MEDIAN_OF = 5
#: ... or when more than this share of its steps is not finite.
_MOST_NONFINITE = 0.2


class AdviceError(Exception):
    """No advice is possible for a config; the message is one line."""


class Recording(NamedTuple):
    """The recorded steps, and how they were recorded.

    Attributes:
        stats: the finite steps.
        lr: the rate that the steps were taken at, after a warm-up.
        failed: the rates that blew up before, with the reason.
        nonfinite: number of steps that were left out, because they were not finite.
    """

    stats: GradientStats
    lr: float
    failed: list[tuple[float, str]]
    nonfinite: int


def record_gradients(
    cfg: Config,
    iterations: int = 60,
    lr: float | None = None,
    attempts: int = 6,
    progress: Callable[[str], None] = lambda text: None,
) -> Recording:
    """Train a config without clipping and record every step.

    Data, model, optimizer with its parameter-wise settings, ``load_from``, and hooks that only
    prepare a run (``before_run``) are those of the config. Validation, checkpoints, other hooks and
    the schedule are left out: the rate rises linearly over the first quarter of the steps and stays
    constant afterwards. A run that blows up is restarted at a quarter of the rate, so that the
    statistics are those of a model that learns.

    Args:
        cfg: a complete MMEngine config; it is not changed.
        iterations: steps of the optimizer to record, at least 10.
        lr: the learning rate; None: that of the config.
        attempts: number of rates to try.
        progress: called with a text after each step, and for each rate that fails.

    Raises:
        AdviceError: no optimizer or more than one, a loss that is not finite from the first step
            on, or a run that blows up at every rate.
    """
    wrappers = list(optim_wrappers(cfg))
    if len(wrappers) != 1:
        raise AdviceError(
            'the config has no optim_wrapper with an optimizer'
            if not wrappers
            else 'the config trains with several optimizers (OptimWrapperDict); advice is for one'
        )
    rate = wrappers[0][1]['optimizer'].get('lr') if lr is None else lr
    if rate is None:
        raise AdviceError('optim_wrapper.optimizer has no lr; give one with --lr')
    failed: list[tuple[float, str]] = []
    for _ in range(attempts):
        hook = _RecordHook(iterations, progress)
        why = _run(_prepare(cfg, rate, iterations), hook)
        if why is None:
            stats = hook.recorder.stats()
            return Recording(stats, rate, failed, hook.nonfinite)
        if hook.nonfinite and not len(hook.recorder):
            raise AdviceError(
                'the gradient is not finite from the first step on, which no learning rate will '
                'mend: look at the loss and the data (GClipSpikeHook names the images)'
            )
        failed.append((rate, why))
        progress(f'\nlr {rate:g} without clipping: {why}; trying {rate / _LOWER:g}\n')
        rate /= _LOWER
    tried = ', '.join(f'{rate:g}' for rate, _ in failed)
    raise AdviceError(f'the run blows up without clipping at every rate that was tried: {tried}')


def _prepare(cfg: Config, lr: float, iterations: int) -> Config:
    cfg = copy.deepcopy(cfg)
    ((_, wrapper),) = optim_wrappers(cfg)
    wrapper.pop('clip_grad', None)
    wrapper['optimizer']['lr'] = lr
    total = iterations * wrapper.get('accumulative_counts', 1)
    warmup = max(total // 4, 1)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup)
    ]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=total, val_interval=total + 1)
    for name in ('val', 'test'):
        for key in (f'{name}_cfg', f'{name}_dataloader', f'{name}_evaluator'):
            cfg[key] = None
    sampler = cfg.train_dataloader.get('sampler')
    if sampler and sampler.get('type') == 'DefaultSampler':
        # With DefaultSampler an iteration-based loop waits two seconds after each epoch.
        sampler['type'] = 'InfiniteSampler'
        sampler.pop('round_up', None)
    cfg.default_hooks = dict(timer=None, logger=None, checkpoint=None)
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        prepare = [h for h in cfg.get('custom_hooks') or () if _only_prepares(h, registry)]
    cfg.custom_hooks = [*prepare, dict(type='GClipHook', clip_grad=_NO_CLIPPING)]
    cfg.log_processor = dict(type='LogProcessor', by_epoch=False)
    cfg.visualizer = None
    cfg.auto_scale_lr = None
    cfg.resume = False
    cfg.log_level = 'ERROR'
    cfg.launcher = 'none'
    return cfg


def _only_prepares(hook: dict[str, Any], registry: Registry) -> bool:
    """Whether ``before_run`` is the only method that a hook implements."""
    kind = hook.get('type')
    cls = registry.get(kind) if isinstance(kind, str) else kind
    acts = [n for n in vars(Hook) if n.startswith(('before_', 'after_'))]
    return cls is not None and [n for n in acts if getattr(cls, n) is not getattr(Hook, n)] == [
        'before_run'
    ]


def _run(cfg: Config, hook: _RecordHook) -> str | None:
    """Train; returns why the run failed, or None."""
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        # MMEngine keeps one message hub per name.
        cfg.experiment_name = f'record_{folder.replace("/", "_")}'
        runner = Runner.from_cfg(cfg)
        runner.register_hook(hook)
        try:
            runner.train()
        except _BlownUp as error:
            return str(error)
    return None


class _BlownUp(Exception):
    pass


class _RecordHook(Hook):
    """Records every step, and stops a run that has blown up."""

    priority = 'LOWEST'

    def __init__(self, iterations: int, progress: Callable[[str], None]) -> None:
        self._iterations = iterations
        self._progress = progress
        self.nonfinite = 0

    def before_train(self, runner: Runner) -> None:
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise AdviceError('the config trains with several optimizers; advice is for one')
        self.recorder = _Recorder(runner.optim_wrapper.optimizer, runner.model)
        self._detach = observe(runner, {'': self.recorder})
        self._losses: list[float] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loss = float(torch.as_tensor(outputs['loss']).detach())
        self._losses.append(loss)
        seen, self.recorder.seen = self.recorder.seen, None
        if seen is None:
            return
        if seen:
            self.recorder.end_step(loss)
        else:
            self.nonfinite += 1
            if not len(self.recorder) or self.nonfinite > _MOST_NONFINITE * self._iterations:
                raise _BlownUp(f'the gradient is not finite at iteration {runner.iter + 1}')
        done = len(self.recorder) + self.nonfinite
        self._progress(
            f'\rstep {done}/{self._iterations}  loss {loss:.4g}  '
            f'grad norm {self.recorder.last_norm:.4g}   '
        )
        finite = [x for x in self._losses if math.isfinite(x)]
        if len(finite) >= 2 * _MEDIAN_OF:
            start, now = np.median(finite[:_MEDIAN_OF]), np.median(finite[-_MEDIAN_OF:])
            if now > _BLOWN_UP * start:
                raise _BlownUp(
                    f'the loss rose from {start:.3g} to {now:.3g} by iteration {runner.iter + 1}'
                )

    def after_train(self, runner: Runner) -> None:
        self._detach()


class _Recorder(GradientRecorder):
    """Records finite steps only."""

    seen: bool | None = None
    last_norm = math.nan

    def before_clip(self, views: Any, measures: Any, norm: Tensor, scale: Tensor | None) -> None:
        self.last_norm = norm.item()
        self.seen = math.isfinite(self.last_norm)
        if self.seen:
            super().before_clip(views, measures, norm, scale)

    def on_record(self, record: Tensor) -> None:
        if self.seen is None:
            # A loss scaler skipped the step.
            self.seen = False
