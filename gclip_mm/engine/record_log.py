"""Hands the records of the steps to MMEngine's message hub without waiting for the device.

A hub's ``update_scalar`` wants numbers at every step, which is a device read at every step. Here
the hub holds buffers that fetch what is outstanding when somebody looks at them, and MMEngine's log
processor looks once in a log interval: one copy for all steps and all keys since the last look.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor

from ..clipping.stats import LOG_KEYS

#: Records kept on the device before they are fetched even though nobody has looked.
_MAX_PENDING = 1024

_logs: weakref.WeakKeyDictionary[MessageHub, dict[str, RecordLog]] = weakref.WeakKeyDictionary()


class RecordLog:
    """The records of one optimizer that are still on the device, and the hub's buffers for them."""

    def __init__(self, hub: MessageHub, prefix: str) -> None:
        self._hub = weakref.ref(hub)
        self.keys = [f'train/{prefix}{key}' for key in LOG_KEYS]
        self._pending: list[Tensor] = []

    def append(self, record: Tensor) -> None:
        """Add the record of a step, a tensor (6,) in the order of ``LOG_KEYS``."""
        self._adopt_buffers()
        self._pending.append(record)
        if len(self._pending) >= _MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Move what is outstanding into the hub's buffers; the one read of the device."""
        if not self._pending:
            return
        rows = torch.stack(self._pending).cpu().numpy()
        self._pending.clear()
        for column, key in enumerate(self.keys):
            buffer = self._hub().log_scalars.get(key)
            if isinstance(buffer, _LazyHistoryBuffer):
                buffer.extend(rows[:, column])

    def _adopt_buffers(self) -> None:
        """Put our buffers into the hub: at the first step, and again after a resume."""
        hub = self._hub()
        for key in self.keys:
            current = hub.log_scalars.get(key)
            if type(current) is _LazyHistoryBuffer and current.log is self:
                continue
            hub._set_resumed_keys(key, True)
            values, counts = ([], []) if current is None else current.data
            hub.log_scalars[key] = _LazyHistoryBuffer(self, values, counts)


class _LazyHistoryBuffer(HistoryBuffer):
    """A ``HistoryBuffer`` that fetches outstanding records when its history is looked at.

    It is pickled and copied as a plain ``HistoryBuffer``: a checkpoint opens without this package.
    """

    def __init__(self, log: RecordLog, values, counts) -> None:
        self.log = log
        super().__init__(values, counts)

    @property
    def _log_history(self) -> np.ndarray:
        self.log.flush()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self.log.flush()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def extend(self, values: np.ndarray) -> None:
        """Append many values at once, each with a count of 1."""
        self._values = np.append(self._values, values)[-self.max_length :]
        self._counts = np.append(self._counts, np.ones(len(values)))[-self.max_length :]

    def __reduce_ex__(self, protocol: int):
        # Without the statistics methods, which are the class's own and which torch's safe loader
        # would have to be talked into.
        state = {
            'max_length': self.max_length,
            '_log_history': self._log_history,
            '_count_history': self._count_history,
        }
        return HistoryBuffer, (), state


def record_log(hub: MessageHub, prefix: str = '') -> RecordLog:
    """The log of a hub under a prefix; one for all who write there."""
    logs = _logs.setdefault(hub, {})
    if prefix not in logs:
        logs[prefix] = RecordLog(hub, prefix)
    return logs[prefix]
