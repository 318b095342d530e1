"""Writes down which images, losses and modules were behind a spike of the gradient."""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...clipping.checks import check_number
from ..telemetry.batch_names import batch_images
from ..telemetry.observing import iterations_of_a_step, observe, wrapper_members
from ..telemetry.spike_detector import SpikeDetector
from ..telemetry.spike_record import (
    BatchRecord,
    StepBuffer,
    rank_entry,
    spike_line,
    spike_summary,
    to_json,
)


@HOOKS.register_module()
class GClipSpikeHook(Hook):
    """Appends one JSON line to ``work_dir/spikes.jsonl`` for each spike and each non-finite step.

    A step is a spike if its gradient norm stands out from the recent ones
    (:class:`~gclip_mm.engine.telemetry.spike_detector.SpikeDetector`), or if a term of its loss does by the
    same measure or is not finite (a box of absurd size has a huge L1 loss, or none that is a
    number, and an ordinary gradient), or if clipping shrank it below ``min_coef``. The fields of a
    line:

    ``iter``, ``epoch``
        as in the log, from 1.
    ``cause``
        ``norm``, ``loss``, ``clip_coef``, ``nonfinite``, or ``loss_scale`` (a mixed-precision step
        that the loss scaler skipped; a few at the start of a run are its way of finding the scale).
    ``loss_term``
        for ``loss``: which one stands out most.
    ``grad_norm``, ``grad_norm_post``, ``clip_coef``, ``clip_threshold``
        of the step.
    ``median``, ``spike_threshold``
        what the norm, or for ``loss`` that term, was compared with; null where there was nothing
        yet (and for ``loss`` if another process than the first has seen it).
    ``modules``
        the ten with the largest gradient norms before clipping, non-finite ones first.
    ``modules_not_finite``, ``modules_in_all``
        how many have a norm that is not finite, and how many there are.
    ``ranks``
        one entry a process: ``rank``, ``images`` (``img_id``, ``img_path``), ``losses`` (each term
        of the loss). With accumulated gradients: of all batches of the step.
    ``optimizer``
        the member's name, with an ``OptimWrapperDict``.

    A number that JSON has no word for is written as ``"nan"``, ``"inf"`` or ``"-inf"``.
    ``tools/analysis/browse_spikes.py`` draws the images with their boxes.

    Nothing waits for the device in a step: norms, losses and the images' names are kept until
    ``interval`` iterations have gathered, then looked at together. On a CPU, where looking costs
    nothing, that is after every iteration. Several processes agree on a spike before they exchange
    anything, and exchange names only when there is one. A run that ends with an error writes what
    it has seen before the process is gone. After a resume, the window of norms goes on from the
    log; iterations that are trained again may be written again.

    The images are those the data sample names: where a transform mixes several (Mosaic, MixUp) it
    is the first. ``PackDetInputs`` must keep ``img_path`` in its ``meta_keys``, as it does by
    default.

    Args:
        z_threshold, min_ratio, window, min_history, min_coef: see
            :class:`~gclip_mm.engine.telemetry.spike_detector.SpikeDetector`.
        interval: iterations between two looks; None: the log interval on a GPU, 1 on a CPU.
        keep_batch: also ``torch.save`` the batch, as the data loader gave it, to
            ``work_dir/spikes/iter_{iter}_rank{rank}.pth`` (with the name of the optimizer before
            it where there are several). Batches not yet looked at stay in memory.
        max_batches: batches kept at most, at least 1.
        max_lines: lines written at most, at least 1: a run that has gone astray has nothing but
            spikes.

    Raises:
        ClipConfigError: a value out of range.

    Example:
        >>> custom_hooks = [dict(type='GClipSpikeHook', z_threshold=6.0, keep_batch=True)]
    """

    # Before the logger, so that a warning comes before the line of its iteration.
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
        """Attach; every hook that clips has attached its engine before the run."""
        self._path = os.path.join(runner.work_dir, 'spikes.jsonl')
        self._folder = os.path.join(runner.work_dir, 'spikes')
        self._members = {
            name: StepBuffer(name, self._make_detector, iterations_of_a_step(wrapper))
            for name, wrapper in wrapper_members(runner.optim_wrapper).items()
        }
        for name, member in self._members.items():
            _recall(runner, f'{name}.grad_norm' if name else 'grad_norm', member.detector)
            for key in list(runner.message_hub.log_scalars):
                if key.startswith('train/') and 'loss' in key:
                    term = key.removeprefix('train/')
                    _recall(runner, term, member.loss_detectors[term])
        self._every = self.interval or _look_interval(runner)
        self._detach = observe(
            runner, {name: member.observer for name, member in self._members.items()}
        )
        atexit.register(self.flush_alone)

    def after_train(self, runner: Runner) -> None:
        """Write what is left and detach."""
        self._flush()
        atexit.unregister(self.flush_alone)
        self._detach()
        self._members.clear()

    # -- every iteration -------------------------------------------------------------------------
    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Note the images, for a step that may be the last."""
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
        outputs: dict | None = None,
    ) -> None:
        """Note the losses; look at what has gathered when it is time."""
        losses = {
            key: value.detach() if isinstance(value, Tensor) else value
            for key, value in (outputs or {}).items()
            if isinstance(value, int | float | Tensor)
        }
        for member in self._members.values():
            member.end(losses)
        if self.every_n_train_iters(runner, self._every):
            self._flush()

    # -- looking ---------------------------------------------------------------------------------
    def flush_alone(self) -> None:
        """Write what is left of a run that ended with an error, this process's part of it only."""
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

    def _write(self, member: StepBuffer, spikes: list, ranks: list, writes_lines: bool) -> None:
        for (step, numbers, verdict), entry in zip(spikes, ranks, strict=True):
            member_name = f'{member.name}_' if member.name else ''
            name = f'{member_name}iter_{step.iter}_rank{get_rank()}.pth'
            # Several steps of an iteration are of the same batch.
            is_new = name != self._last_batch
            if self.keep_batch and is_new and self._batches < self.max_batches:
                self._batches += 1
                self._last_batch = name
                os.makedirs(self._folder, exist_ok=True)
                path = os.path.join(self._folder, name)
                torch.save([batch.data for batch in step.batches], path)
            if self._lines == self.max_lines:
                self._lines += 1
                _warn(f'{self.max_lines} spikes written (max_lines); no more are')
            if self._lines > self.max_lines:
                continue
            self._lines += 1
            if writes_lines:
                line = {'optimizer': member.name} if member.name else {}
                line |= spike_line(step, numbers, verdict, list(entry))
                with open(self._path, 'a') as file:
                    file.write(json.dumps(to_json(line), allow_nan=False) + '\n')
                _warn(spike_summary(line))


def _recall(runner: Runner, key: str, detector: SpikeDetector) -> None:
    """Go on from the history that the log has kept through a resume."""
    if f'train/{key}' in runner.message_hub.log_scalars:
        for number in runner.message_hub.get_scalar(f'train/{key}').data[0]:
            detector.remember(float(number))


def _look_interval(runner: Runner) -> int:
    """How often to look: always where it is free, else as often as the log does."""
    if next(runner.model.parameters()).device.type == 'cpu':
        return 1
    return next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)


def _warn(message: str) -> None:
    print_log(f'GClipSpikeHook: {message}', logger='current', level=logging.WARNING)
