"""Hands numbers to MMEngine's message hub without waiting for the device they lie on.

A hub's ``update_scalar`` wants numbers at every step, which is a device read at every step. Here
the hub holds buffers that fetch what is outstanding when somebody looks at them, and MMEngine's log
processor looks once in a log interval: one copy for all steps and all keys since the last look.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor

#: Entries kept on the device before they are fetched even though nobody has looked.
_MAX_PENDING = 1024


class DeferredScalars:
    """Numbers for one hub that are still on the device, and the hub's buffers for them."""

    def __init__(self, hub: MessageHub) -> None:
        self._hub = weakref.ref(hub)
        self._pending: list[tuple[tuple[str, ...], Tensor]] = []

    def append(self, keys: tuple[str, ...], values: Tensor) -> None:
        """Add a number to each of several histories.

        Args:
            keys: the K keys in the hub, as ``train/loss``.
            values: (K,), of any real dtype, on any device. It is kept, not copied: whoever made it
                must not write to it again.
        """
        for key in keys:
            self.adopt(key)
        self._pending.append((keys, values))
        if len(self._pending) >= _MAX_PENDING:
            self.flush()

    def adopt(self, key: str) -> None:
        """Put a buffer of ours under the key: the first time, and again after a resume."""
        hub = self._hub()
        current = hub.log_scalars.get(key)
        if type(current) is _LazyHistoryBuffer and current.source is self:
            return
        # What is still outstanding was for a buffer that something else has taken the place of, as
        # when a run is resumed in the process that has trained beyond its checkpoint.
        self._pending = [entry for entry in self._pending if key not in entry[0]]
        hub._set_resumed_keys(key, True)
        values, counts = ([], []) if current is None else current.data
        hub.log_scalars[key] = ours = _LazyHistoryBuffer(self, values, counts)
        if current is not None:
            ours.max_length = current.max_length

    def flush(self) -> None:
        """Move what is outstanding into the hub's buffers; the one read of each device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        # Of one kind are entries that can be fetched together.
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
            buffer = self._hub().log_scalars.get(key)
            if isinstance(buffer, _LazyHistoryBuffer):
                buffer.extend(column)


class _LazyHistoryBuffer(HistoryBuffer):
    """A ``HistoryBuffer`` that fetches outstanding numbers when its history is looked at.

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

    def __reduce_ex__(self, protocol: int):
        # Without the statistics methods, which are the class's own and which torch's safe loader
        # would have to be talked into.
        state = {
            'max_length': self.max_length,
            '_log_history': self._log_history,
            '_count_history': self._count_history,
        }
        return HistoryBuffer, (), state


def _joined(history: np.ndarray, news: Sequence[float]) -> np.ndarray:
    """The history and the news; integers stay integers, as in a buffer that began with the news."""
    return np.append(history, news) if len(history) else np.array(news)
