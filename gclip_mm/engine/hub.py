"""Everything of this package that reaches MMEngine's message hub.

``MessageHub.update_scalar`` needs a number at every step, which is a device read at every step.
:class:`DeferredScalars` puts buffers into the hub that fetch outstanding numbers when their history
is read. MMEngine's log processor reads once in a log interval: one copy for all steps and all keys
since the last read.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor, nn

from ..clipping.step.record import LOG_KEYS

#: Entries kept on the device before they are fetched without a read of the history.
_MAX_PENDING = 1024


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
        self._pending: list[tuple[tuple[str, ...], Tensor]] = []

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

    def append(self, keys: tuple[str, ...], values: Tensor) -> None:
        """Add a number to each of several histories.

        Args:
            keys: the K keys in the hub, such as ``train/loss``.
            values: (K,), of any real dtype, on any device. The tensor is kept, not copied: the
                caller must not write to it afterwards.
        """
        for key in keys:
            self.adopt(key)
        self._pending.append((keys, values))
        if len(self._pending) >= _MAX_PENDING:
            self.flush()

    def adopt(self, key: str) -> None:
        """Put a buffer of ours under the key: the first time, and again after a resume."""
        hub = self._hub
        current = hub.log_scalars.get(key)
        if type(current) is _LazyHistoryBuffer and current.source is self:
            return
        # A resume in the same process replaces the buffer. The outstanding numbers belong to steps
        # beyond the checkpoint, so they are dropped.
        self._pending = [entry for entry in self._pending if key not in entry[0]]
        hub._set_resumed_keys(key, True)
        values, counts = ([], []) if current is None else current.data
        hub.log_scalars[key] = ours = _LazyHistoryBuffer(self, values, counts)
        if current is not None:
            ours.max_length = current.max_length

    def flush(self) -> None:
        """Move outstanding numbers into the hub's buffers, with one read of each device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        # Entries of one kind can be stacked and fetched together.
        kinds = [(keys, values.dtype, values.device) for keys, values in pending]
        together: dict[Any, list[Tensor]] = {}
        for kind, (_, values) in zip(kinds, pending, strict=True):
            together.setdefault(kind, []).append(values)
        rows = {kind: iter(torch.stack(entries).tolist()) for kind, entries in together.items()}
        numbers: dict[str, list[float]] = {}
        for kind, (keys, _) in zip(kinds, pending, strict=True):
            for key, number in zip(keys, next(rows[kind]), strict=True):
                numbers.setdefault(key, []).append(number)
        for key, column in numbers.items():
            buffer = self._hub.log_scalars.get(key)
            if isinstance(buffer, _LazyHistoryBuffer):
                buffer.extend(column)


def _can_be_deferred(value: Any) -> bool:
    # A subclass, such as a DTensor, may need communication to tell its value.
    is_plain = type(value) is Tensor or type(value) is nn.Parameter
    return is_plain and value.numel() == 1 and not value.is_complex()


class _LazyHistoryBuffer(HistoryBuffer):
    """A ``HistoryBuffer`` that fetches outstanding numbers when its history is read.

    It is pickled and copied as a plain ``HistoryBuffer``: a checkpoint opens without this package.
    """

    def __init__(self, source: DeferredScalars, values: Any, counts: Any) -> None:
        self.source = source
        super().__init__(values, counts)

    @property
    def _log_history(self) -> np.ndarray:
        self.source.flush()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self.source.flush()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def extend(self, values: Sequence[float]) -> None:
        """Append many numbers at once, each with a count of 1."""
        self._values = _joined(self._values, values)[-self.max_length :]
        self._counts = _joined(self._counts, [1] * len(values))[-self.max_length :]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Without the statistics methods: they belong to the class, and torch's safe loader refuses
        # them.
        state = {
            'max_length': self.max_length,
            '_log_history': self._log_history,
            '_count_history': self._count_history,
        }
        return HistoryBuffer, (), state


def _joined(history: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """History and values joined; values alone keep their dtype, so that integers stay integers."""
    return np.append(history, values) if len(history) else np.array(values)


# -- the records of the steps ---------------------------------------------------------------------
class RecordLog(DeferredScalars):
    """The step records of one optimizer, which stay on the device until their history is read.

    Args:
        hub: the message hub.
        prefix: stands before each log key, such as ``generator.``.
    """

    def __init__(self, hub: MessageHub, prefix: str) -> None:
        super().__init__(hub)
        self.keys = tuple(f'train/{prefix}{key}' for key in LOG_KEYS)

    def append_record(self, record: Tensor) -> None:
        """Add the record of a step, (6,) float64 in the order of ``LOG_KEYS``."""
        self.append(self.keys, record)


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
