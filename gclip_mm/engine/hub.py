"""Everything of this package that reaches MMEngine's message hub.

``MessageHub.update_scalar`` needs a number at every step, which is a device read at every step.
:class:`DeferredScalars` puts buffers into the hub that fetch outstanding numbers when their history
is read. MMEngine's log processor reads once in a log interval: one copy for all steps and all keys
since the last read.

A step that is left out stays in the histories, but not in the averages that are logged: its entries
get a count of 0 (:class:`StepHistory`).
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import Runner
from torch import Tensor, nn

from ..clipping.step.record import LOG_KEYS
from .left_out import StepWatch, has_engine
from .step_history import MAX_PENDING, ShareHistory, StepHistory, Verdict

#: The hub from which MMEngine's log processor is reading a line of the training log.
_hub_of_line: contextvars.ContextVar[MessageHub | None] = contextvars.ContextVar(
    'hub_of_line', default=None
)


# -- reading --------------------------------------------------------------------------------------
class HubClock:
    """Reads ``(iteration, epoch)``, both from 0, from the hub, where the runner writes them.

    Args:
        hub: the runner's message hub.
        fallback: returns the iteration where no runner has written one; None: the iteration is 0.
    """

    def __init__(self, hub: MessageHub, fallback: Callable[[], int] | None = None) -> None:
        self._hub = hub
        self._fallback = fallback

    def __deepcopy__(self, memo: dict[int, Any]) -> HubClock:
        # The copies of a wrapper share one runner, and so one hub.
        return HubClock(self._hub, copy.deepcopy(self._fallback, memo))

    def __call__(self) -> tuple[int, int]:
        iteration = self._hub.get_info('iter')
        if iteration is None:
            iteration = 0 if self._fallback is None else self._fallback()
        return iteration, self._hub.get_info('epoch', 0)


def train_scalars(hub: MessageHub) -> list[str]:
    """Names of the histories that training has logged, without the prefix ``train/``."""
    return [key.removeprefix('train/') for key in hub.log_scalars if key.startswith('train/')]


def train_history(hub: MessageHub, name: str) -> Iterator[float]:
    """The numbers logged under ``train/<name>``, oldest first; none if the key does not exist."""
    if f'train/{name}' in hub.log_scalars:
        yield from map(float, hub.get_scalar(f'train/{name}').data[0])


# -- writing --------------------------------------------------------------------------------------
class DeferredScalars:
    """Numbers for one hub that are still on the device, and the hub's buffers for them.

    Args:
        hub: the message hub; it is referenced weakly.
    """

    def __init__(self, hub: MessageHub) -> None:
        self._hub_ref = weakref.ref(hub)
        self._pending: list[tuple[tuple[str, ...], Tensor, Verdict | None]] = []

    @property
    def _hub(self) -> MessageHub:
        hub = self._hub_ref()
        if hub is None:
            raise ReferenceError('the message hub of these numbers no longer exists')
        return hub

    def update(self, scalars: dict[str, Any]) -> None:
        """Add one number to each history; the counterpart of ``MessageHub.update_scalars``.

        Real numbers in plain tensors of one element are copied to one small tensor per device and
        dtype, and fetched later. Anything else goes to ``MessageHub.update_scalar`` at once.

        Args:
            scalars: the numbers by their keys in the hub, such as ``train/loss``.
        """
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[str], list[Tensor]]] = {}
        for key, value in scalars.items():
            if not _can_be_deferred(value):
                self._hub.update_scalar(key, value)
                continue
            # One by one, so that the keys come in the order of the stock hook's.
            self.adopt(key)
            keys, values = groups.setdefault((value.device, value.dtype), ([], []))
            keys.append(key)
            values.append(value.detach().reshape(()))
        for keys, values in groups.values():
            # A copy: the next step may write to the tensors of the model (CUDA graphs).
            self.append(tuple(keys), torch.stack(values))

    def append(self, keys: tuple[str, ...], values: Tensor, verdict: Verdict | None = None) -> None:
        """Add a number to each of several histories.

        Args:
            keys: the K keys in the hub, such as ``train/loss``.
            values: (K,), of any real dtype, on any device. The tensor is kept, not copied: the
                caller must not write to it afterwards.
            verdict: is decided by the last of the values when they are fetched: not 0 if the step
                was left out.
        """
        for key in keys:
            self.adopt(key).total += 1
        self._pending.append((keys, values, verdict))
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def adopt(self, key: str) -> StepHistory:
        """Put a buffer of ours under the key: the first time, and again after a resume."""
        hub = self._hub
        current = hub.log_scalars.get(key)
        if isinstance(current, StepHistory) and current.source is self:
            return current
        # A resume in the same process replaces the buffer. The outstanding numbers belong to steps
        # beyond the checkpoint, so they are dropped.
        self._drop_pending(key)
        hub._set_resumed_keys(key, True)
        hub.log_scalars[key] = ours = self._new_history(key, current)
        return ours

    def _new_history(self, key: str, current: HistoryBuffer | None) -> StepHistory:
        return StepHistory(self, current)

    def _drop_pending(self, key: str) -> None:
        dropped = [entry for entry in self._pending if key in entry[0]]
        self._pending = [entry for entry in self._pending if key not in entry[0]]
        for keys, _, _ in dropped:
            for other in keys:
                buffer = self._hub.log_scalars.get(other)
                if isinstance(buffer, StepHistory) and buffer.source is self:
                    buffer.total -= 1

    @property
    def is_read_for_line(self) -> bool:
        """Whether the hub is being read for a line of the training log."""
        return _hub_of_line.get() is self._hub

    def flush(self) -> None:
        """Move outstanding numbers into the hub's buffers, with one read of each device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        # Entries of one kind can be stacked and fetched together.
        kinds = [(keys, values.dtype, values.device) for keys, values, _ in pending]
        together: dict[Any, list[Tensor]] = {}
        for kind, (_, values, _) in zip(kinds, pending, strict=True):
            together.setdefault(kind, []).append(values)
        rows = {kind: iter(torch.stack(entries).tolist()) for kind, entries in together.items()}
        numbers: dict[str, list[float]] = {}
        for kind, (keys, _, verdict) in zip(kinds, pending, strict=True):
            row = next(rows[kind])
            for key, number in zip(keys, row, strict=True):
                numbers.setdefault(key, []).append(number)
            if verdict is not None:
                verdict.left_out = bool(row[-1])
        for key, column in numbers.items():
            buffer = self._hub.log_scalars.get(key)
            if isinstance(buffer, StepHistory):
                buffer.extend(column)


def _can_be_deferred(value: Any) -> bool:
    # A subclass, such as a DTensor, may need communication to tell its value.
    is_plain = type(value) is Tensor or type(value) is nn.Parameter
    return is_plain and value.numel() == 1 and not value.is_complex()


@contextlib.contextmanager
def line_of_log(hub: MessageHub) -> Iterator[None]:
    """A log processor is reading a line of the training log from a hub."""
    token = _hub_of_line.set(hub)
    try:
        yield
    finally:
        _hub_of_line.reset(token)


class RecordLog(DeferredScalars):
    """The step records of one optimizer, which stay on the device until their history is read.

    Args:
        hub: the message hub.
        prefix: stands before each log key, such as ``generator.``.
    """

    def __init__(self, hub: MessageHub, prefix: str) -> None:
        super().__init__(hub)
        self.keys = tuple(f'train/{prefix}{key}' for key in LOG_KEYS)

    def _new_history(self, key: str, current: HistoryBuffer | None) -> StepHistory:
        kind = ShareHistory if key == self.keys[-1] else StepHistory
        return kind(self, current)

    def append_record(self, record: Tensor, left_out: bool | Tensor = False) -> None:
        """Add the record of a step.

        Args:
            record: (6,) float64 in the order of ``LOG_KEYS``.
            left_out: whether the step was left out; a tensor where only the device knows. It is not
                read, because the record tells the same.
        """
        if left_out is False:
            self.append(self.keys, record)
            return
        verdict = Verdict()
        self.append(self.keys, record, verdict)
        for key in self.keys[:-1]:
            self.adopt(key).mark(verdict)


_logs: weakref.WeakKeyDictionary[MessageHub, dict[str, RecordLog]] = weakref.WeakKeyDictionary()


def record_log(hub: MessageHub, prefix: str = '') -> RecordLog:
    """The log of a hub under a prefix; all writers of one prefix share it."""
    logs = _logs.setdefault(hub, {})
    if prefix not in logs:
        logs[prefix] = RecordLog(hub, prefix)
    return logs[prefix]


def drop_records(hub: MessageHub, prefix: str = '') -> None:
    """Remove the histories of the step records under a prefix from the hub."""
    for key in LOG_KEYS:
        hub.log_scalars.pop(f'train/{prefix}{key}', None)


# -- the losses -----------------------------------------------------------------------------------
class _LossMarks:
    """Marks what a model returned in the iterations of a step that was left out."""

    def __init__(self) -> None:
        self._watch = StepWatch()
        self._open = Verdict()
        self._iterations = 0
        self._scalars: Any = None

    def add(self, hub: MessageHub, wrapper: Any, keys: list[str]) -> None:
        """Take the iteration that has just been logged under ``keys``."""
        left_out = self._watch(wrapper)
        if left_out is None and not has_engine(wrapper):
            return
        if hub.log_scalars is not self._scalars:
            self._scalars = hub.log_scalars
            _recover(hub)
        verdict = self._open
        if left_out is not None or self._iterations >= MAX_PENDING:
            verdict.left_out = False if left_out is None else left_out
            self._open, self._iterations = Verdict(), 0
            if verdict.left_out is False:
                return
        else:
            self._iterations += 1
        for key in keys:
            buffer = hub.log_scalars.get(key)
            if buffer is None:
                continue
            if not isinstance(buffer, StepHistory):
                hub.log_scalars[key] = buffer = StepHistory(None, buffer)
            buffer.mark(verdict)


def _recover(hub: MessageHub) -> None:
    """After a resume, leave the steps out again that the checkpoint says were left out."""
    for key, buffer in hub.log_scalars.items():
        is_plain = key.startswith('train/') and type(buffer) is HistoryBuffer
        if is_plain and not buffer.data[1].all():
            hub.log_scalars[key] = StepHistory(None, buffer)


_marks: weakref.WeakKeyDictionary[MessageHub, _LossMarks] = weakref.WeakKeyDictionary()


def note_losses(runner: Runner, outputs: dict[str, Any] | None) -> None:
    """Keep the losses of an iteration out of the averages if its step was left out.

    With gradient accumulation, also those of the earlier iterations of the step. Nothing is read
    from the device.

    Args:
        runner: the runner; the losses of this iteration have just been logged.
        outputs: what the model returned.
    """
    hub = runner.message_hub
    marks = _marks.setdefault(hub, _LossMarks())
    marks.add(hub, runner.optim_wrapper, [f'train/{name}' for name in outputs or {}])
