"""Trains one cell of a grid, in the calling process."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine.apply_clip import apply_clip
from ..engine.checkpoints.resume import find_resumable
from ..engine.configs import drop_clip_hooks, optim_wrappers
from .sweep_grid import DIVERGED, FAILED, TRAINED, Cell, Outcome

#: The host reads the loss once in this many iterations.
LOOK_EVERY = 10


def cell_config(base: Config, cell: Cell, folder: Path) -> Config:
    """The config of a cell.

    Args:
        base: a complete config with one optimizer; it is not changed.
        cell: learning rate, rule and seed.
        folder: the work dir.

    Raises:
        ClipConfigError: an invalid rule.
    """
    cfg = copy.deepcopy(base)
    for _, wrapper in optim_wrappers(cfg):
        wrapper['optimizer']['lr'] = cell.lr
        wrapper.pop('clip_grad', None)
    if cell.clip_grad is None:
        drop_clip_hooks(cfg)
    else:
        apply_clip(cfg, cell.clip_grad)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=cell.seed)
    cfg.work_dir = str(folder)
    cfg.launcher = 'none'
    return cfg


def fingerprint(cfg: Config) -> str:
    """A hash of a config, without its work dir and the checkpoint that it resumes from."""
    content = {
        k: v for k, v in cfg.to_dict().items() if k not in ('work_dir', 'resume', 'load_from')
    }
    text = json.dumps([content, cfg.get('load_from')], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_cell(cfg: Config, patience: int) -> Outcome:
    """Train a cell and validate it; an error of the training is part of the outcome.

    An interrupted run resumes from its checkpoint.

    Args:
        cfg: of :func:`cell_config`.
        patience: the cell has diverged after this many consecutive non-finite losses.
    """
    start = time.perf_counter()
    outcome = Outcome(FAILED, fingerprint=fingerprint(cfg))
    begun = find_resumable(cfg.work_dir)
    if begun is not None:
        cfg.load_from, cfg.resume = begun, True
    watch = _Watch(patience)
    runner = None
    try:
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        runner.register_hook(watch)
        runner.train()
        if begun is not None and not watch.metrics and runner.val_loop is not None:
            # The run was interrupted between its last checkpoint and its last validation.
            runner.val_loop.run()
        outcome.status = TRAINED
        outcome.skipped = _skipped(runner)
    except _Diverged:
        outcome.status = DIVERGED
        outcome.skipped = _skipped(runner)
    except Exception as error:  # a diverged model may raise anything
        traceback.print_exc()
        watch.look()
        # Losses, assigners and NMS reject NaN: the error is then a consequence of the divergence.
        lost = watch.streak > 0 or (runner is not None and not _is_finite(runner.model))
        outcome.status = DIVERGED if lost else FAILED
        outcome.error = f'{type(error).__name__}: {error}'.split('\n')[0][:300]
    outcome.metrics = watch.metrics
    outcome.iterations = watch.iteration
    outcome.last_loss = watch.last_finite
    if outcome.status == DIVERGED:
        outcome.nonfinite_from = watch.iteration - watch.streak + 1
    outcome.seconds = time.perf_counter() - start
    return outcome


def _is_finite(model: nn.Module) -> bool:
    """Whether all weights and running statistics are finite."""
    return all(bool(t.isfinite().all()) for t in model.state_dict().values())


def _skipped(runner: Runner) -> int:
    # `nonfinite` is recorded for every step with clipping; without clipping it is missing.
    scalars = runner.message_hub.log_scalars
    total = 0.0
    for key, buffer in scalars.items():
        if key.startswith('train/') and key.endswith('nonfinite'):
            total += float(buffer.data[0].sum())
    return int(total)


class _Diverged(Exception):
    pass


class _Watch(Hook):
    """Follows the loss, stops a run that has diverged, and keeps the metrics."""

    priority = 'VERY_LOW'

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._losses: list[Tensor] = []
        self.streak = 0
        self.iteration = 0
        self.last_finite = math.nan
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        self.iteration = runner.iter

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._losses.append(torch.as_tensor(outputs['loss']).detach())
        if len(self._losses) >= LOOK_EVERY:
            self.look()
            if self.streak >= self._patience:
                # `stop_training` would continue to the end of the epoch, and validate.
                raise _Diverged

    def look(self) -> None:
        """Read the losses since the last call."""
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        for loss in losses:
            self.iteration += 1
            if math.isfinite(loss):
                self.streak = 0
                self.last_finite = loss
            else:
                self.streak += 1
        self._losses.clear()

    def after_train(self, runner: Runner) -> None:
        self.look()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = {k: float(v) for k, v in (metrics or {}).items() if _is_number(v)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, 'ndim', 1) == 0
