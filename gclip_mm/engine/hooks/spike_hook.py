"""Records the images, losses and modules of steps with a gradient spike."""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...clipping.checks import check_number
from ..hub import train_history, train_scalars
from ..telemetry.batch_names import batch_images
from ..telemetry.observing import iterations_of_a_step, observe, wrapper_members
from ..telemetry.spike_detector import SpikeDetector
from ..telemetry.spike_record import (
    BatchRecord,
    Spike,
    StepBuffer,
    rank_entry,
    spike_line,
    spike_summary,
    to_json,
)
from .keys import reject_unknown_keys


@HOOKS.register_module()
@reject_unknown_keys
class GClipSpikeHook(Hook):
    """Appends one JSON line to ``work_dir/spikes.jsonl`` for each spike and each non-finite step.

    A step is a spike in one of three cases:

    * its gradient norm is an outlier among the recent norms
      (:class:`~gclip_mm.engine.telemetry.spike_detector.SpikeDetector`);
    * a term of its loss is an outlier by the same measure, or is not finite (a box of absurd size
      has a huge or non-finite L1 loss, and an ordinary gradient);
    * its clipping coefficient is below ``min_coef``.

    The fields of a line:

    ``iter``, ``epoch``
        as in the log, from 1.
    ``cause``
        ``norm``, ``loss``, ``clip_coef``, ``nonfinite``, or ``loss_scale`` (a mixed-precision step
        that the loss scaler skipped; a few are normal at the start of a run, while the scaler
        searches for the scale).
    ``loss_term``
        for ``loss``: the term that exceeds its threshold most.
    ``grad_norm``, ``grad_norm_post``, ``clip_coef``, ``clip_threshold``
        the log keys of the step.
    ``median``, ``spike_threshold``
        median and threshold of the norm, or for ``loss`` of that term; null before there is a
        history (and for ``loss`` if another process than the first found the spike).
    ``modules``
        the ten modules with the largest gradient norms before clipping, non-finite ones first.
    ``modules_not_finite``, ``modules_in_all``
        number of modules with a non-finite norm, and of all modules.
    ``ranks``
        one entry per process: ``rank``, ``images`` (``img_id``, ``img_path``), ``losses`` (each
        term of the loss). With accumulated gradients: of all batches of the step.
    ``optimizer``
        the member's name, with an ``OptimWrapperDict``.

    Numbers that JSON cannot express are written as ``"nan"``, ``"inf"`` or ``"-inf"``.
    ``tools/analysis/browse_spikes.py`` draws the images with their boxes.

    The hook does not wait for the device in a step: it keeps norms, losses and image names for
    ``interval`` iterations and then reads them together. On a CPU, where a read costs nothing, it
    reads after every iteration. Several processes first agree whether there is a spike, and
    exchange names only if there is one. A run that ends with an error writes the steps that it has
    kept before the process exits. After a resume the window of norms continues from the log;
    iterations that are trained again may be written again.

    The images are the ones that the data sample names. Where a transform mixes several (Mosaic,
    MixUp) this is the first one. ``PackDetInputs`` must keep ``img_path`` in its ``meta_keys``, as
    it does by default.

    Args:
        z_threshold, min_ratio, window, min_history, min_coef: see
            :class:`~gclip_mm.engine.telemetry.spike_detector.SpikeDetector`.
        interval: iterations between two reads; None: the log interval on a GPU, 1 on a CPU.
        keep_batch: also ``torch.save`` the batch, as the data loader returned it, to
            ``work_dir/spikes/iter_{iter}_rank{rank}.pth`` (prefixed with the name of the optimizer
            if there are several). Batches stay in memory until they are read.
        max_batches: maximum number of saved batches, at least 1.
        max_lines: maximum number of lines, at least 1: every step of a diverged run is a spike.

    Raises:
        ClipConfigError: an unknown key, or a value out of range.

    Example:
        >>> custom_hooks = [dict(type='GClipSpikeHook', z_threshold=6.0, keep_batch=True)]
    """

    # Before the logger, so that a warning precedes the line of its iteration.
    priority = 'NORMAL'

    def __init__(
        self,
        z_threshold: float = 6.0,
        min_ratio: float = 3.0,
        window: int = 100,
        min_history: int = 20,
        min_coef: float | None = None,
        interval: int | None = None,
        keep_batch: bool = False,
        max_batches: int = 20,
        max_lines: int = 1000,
    ) -> None:
        where = 'GClipSpikeHook'
        check_number('interval', interval, low=1, allow_none=True, integer=True, where=where)
        check_number('max_batches', max_batches, low=1, integer=True, where=where)
        check_number('max_lines', max_lines, low=1, integer=True, where=where)
        self._make_detector = lambda: SpikeDetector(
            z_threshold, min_ratio, window, min_history, min_coef, where=where
        )
        self._make_detector()
        self.interval = interval
        self.keep_batch = keep_batch
        self.max_batches = max_batches
        self.max_lines = max_lines
        self._lines = 0
        self._batches = 0
        self._last_batch = ''
        self._members: dict[str, StepBuffer] = {}
        self._detach: Callable[[], None] = lambda: None
        self._names_known = True

    # -- life cycle ------------------------------------------------------------------------------
    def before_train(self, runner: Runner) -> None:
        """Attach to the optimizers; hooks that clip have attached engines in ``before_run``."""
        self._path = os.path.join(runner.work_dir, 'spikes.jsonl')
        self._folder = os.path.join(runner.work_dir, 'spikes')
        self._members = {
            name: StepBuffer(name, self._make_detector, iterations_of_a_step(wrapper))
            for name, wrapper in wrapper_members(runner.optim_wrapper).items()
        }
        for name, member in self._members.items():
            _recall(runner, f'{name}.grad_norm' if name else 'grad_norm', member.detector)
            for term in train_scalars(runner.message_hub):
                if 'loss' in term:
                    _recall(runner, term, member.loss_detectors[term])
        self._every = self.interval or _look_interval(runner)
        self._detach = observe(
            runner, {name: member.observer for name, member in self._members.items()}
        )
        atexit.register(self.flush_alone)

    def after_train(self, runner: Runner) -> None:
        """Write the spikes among the kept steps and detach."""
        self._flush()
        atexit.unregister(self.flush_alone)
        self._detach()
        self._members.clear()

    # -- every iteration -------------------------------------------------------------------------
    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Store the images before the step, which may end with an error."""
        batch = BatchRecord(batch_images(data_batch), data_batch if self.keep_batch else None)
        if self._names_known and not batch.images:
            self._names_known = False
            _warn(
                "the batches name no images: keep 'img_path' and 'img_id' in the meta_keys of the "
                'transform that packs them'
            )
        for member in self._members.values():
            member.begin(runner.iter + 1, runner.epoch + 1, batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Store the losses; every ``interval`` iterations, read the kept steps."""
        losses = {
            key: value.detach() if isinstance(value, Tensor) else value
            for key, value in (outputs or {}).items()
            if isinstance(value, int | float | Tensor)
        }
        for member in self._members.values():
            member.end(losses)
        if self.every_n_train_iters(runner, self._every):
            self._flush()

    # -- reading and writing ---------------------------------------------------------------------
    def flush_alone(self) -> None:
        """Write the spikes of a run that ended with an error; of this process only."""
        for member in self._members.values():
            member.end({})
            spikes = member.judge()
            self._write(member, spikes, [[rank_entry(step)] for step, *_ in spikes], True)
        self._members.clear()

    def _flush(self) -> None:
        for member in self._members.values():
            spikes = member.judge(agree=True)
            if not spikes:
                continue
            entries = all_gather_object([rank_entry(step) for step, *_ in spikes])
            self._write(member, spikes, list(zip(*entries, strict=True)), is_main_process())

    def _write(
        self,
        member: StepBuffer,
        spikes: list[Spike],
        ranks: Sequence[Sequence[dict[str, Any]]],
        writes_lines: bool,
    ) -> None:
        for (step, numbers, verdict), entry in zip(spikes, ranks, strict=True):
            member_name = f'{member.name}_' if member.name else ''
            name = f'{member_name}iter_{step.iter}_rank{get_rank()}.pth'
            # Several steps of an iteration have the same batch.
            is_new = name != self._last_batch
            if self.keep_batch and is_new and self._batches < self.max_batches:
                self._batches += 1
                self._last_batch = name
                os.makedirs(self._folder, exist_ok=True)
                path = os.path.join(self._folder, name)
                torch.save([batch.data for batch in step.batches], path)
            if self._lines == self.max_lines:
                self._lines += 1
                _warn(f'{self.max_lines} spikes written (max_lines); further ones are not written')
            if self._lines > self.max_lines:
                continue
            self._lines += 1
            if writes_lines:
                line: dict[str, Any] = {'optimizer': member.name} if member.name else {}
                line |= spike_line(step, numbers, verdict, list(entry))
                with open(self._path, 'a') as file:
                    file.write(json.dumps(to_json(line), allow_nan=False) + '\n')
                _warn(spike_summary(line))


def _recall(runner: Runner, key: str, detector: SpikeDetector) -> None:
    """Fill the detector's window from the log, which a checkpoint restores."""
    for number in train_history(runner.message_hub, key):
        detector.remember(number)


def _look_interval(runner: Runner) -> int:
    """Iterations between two reads: 1 on a CPU, else the log interval."""
    if next(runner.model.parameters()).device.type == 'cpu':
        return 1
    return next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)


def _warn(message: str) -> None:
    print_log(f'GClipSpikeHook: {message}', logger='current', level=logging.WARNING)
