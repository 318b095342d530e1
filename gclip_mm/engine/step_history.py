"""Histories of MMEngine's log whose statistics pass over the steps that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

#: Entries kept on the device before they are fetched without a read of the history.
MAX_PENDING = 1024


class Source(Protocol):
    """Where outstanding numbers of a history are."""

    @property
    def is_read_for_line(self) -> bool:
        """Whether a log processor is reading a line of the training log."""

    def flush(self) -> None:
        """Hand the outstanding numbers to their histories."""


class Verdict:
    """Whether a step was left out.

    Args:
        left_out: a 0-d tensor, not 0 if so, where only the device knows; None while the step has
            not been reached (gradient accumulation).
    """

    __slots__ = ('left_out',)

    def __init__(self, left_out: bool | Tensor | None = None) -> None:
        self.left_out = left_out


def fetch(verdicts: Iterable[Verdict]) -> None:
    """Read the verdicts that are on a device, together."""
    waiting = {id(v): v for v in verdicts if isinstance(v.left_out, Tensor)}
    if not waiting:
        return
    flags = [v.left_out.reshape(()) for v in waiting.values()]  # type: ignore[union-attr]
    device = flags[0].device
    values = torch.stack([flag.to(device, torch.float32) for flag in flags]).tolist()
    for verdict, value in zip(waiting.values(), values, strict=True):
        verdict.left_out = value != 0


class StepHistory(HistoryBuffer):
    """A ``HistoryBuffer`` that leaves the steps that were left out out of its statistics.

    The values stay in the history, with a count of 0. ``mean``, ``max`` and ``min`` pass over them,
    unless the window holds nothing else. ``current`` is the last step, left out or not.

    Outstanding numbers are fetched when the history is read. It is pickled and copied as a plain
    ``HistoryBuffer``: a checkpoint opens without this package.

    Args:
        source: where outstanding numbers are; None: there are none.
        current: the buffer to continue; None: an empty one.
    """

    def __init__(self, source: Source | None = None, current: HistoryBuffer | None = None) -> None:
        self.source = source
        values, counts = ([], []) if current is None else current.data
        super().__init__(values, counts)
        #: Number of values so far, with those that are outstanding or were dropped for length.
        self.total = len(values)
        self._marks: list[tuple[int, Verdict]] = []
        if current is not None:
            self.max_length = current.max_length
        if isinstance(current, StepHistory):
            self.total, self._marks = current.total, current._marks

    @property
    def _log_history(self) -> np.ndarray:
        self._flush()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self._flush()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def _flush(self) -> None:
        if self.source is not None:
            self.source.flush()

    def extend(self, values: Sequence[float]) -> None:
        """Take outstanding numbers, each with a count of 1; they are in ``total`` already."""
        self._values = _joined(self._values, values)[-self.max_length :]
        self._counts = _joined(self._counts, [1] * len(values))[-self.max_length :]

    def update(self, log_val: float, count: int = 1) -> None:
        """Add a value at once."""
        super().update(log_val, count)
        self.total += 1

    def mark(self, verdict: Verdict) -> None:
        """Leave the last value out of the statistics if its step turns out to be left out."""
        self._marks.append((self.total - 1, verdict))
        if len(self._marks) >= 2 * MAX_PENDING:
            self.settle()

    def settle(self) -> None:
        """Apply the verdicts; may wait for the device."""
        self._flush()
        if not self._marks:
            return
        fetch(verdict for _, verdict in self._marks)
        start = self.total - len(self._values)
        for position, verdict in self._marks:
            if verdict.left_out and start <= position < self.total:
                self._counts[position - start] = 0
        self._marks = [mark for mark in self._marks if mark[1].left_out is None]

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and counts; the count is 0 where the step was left out."""
        self.settle()
        return super().data

    def mean(self, window_size: int | None = None) -> Any:
        """The mean of the last ``window_size`` values, without the steps that were left out."""
        return self._taken(window_size).mean(window_size)

    def max(self, window_size: int | None = None) -> Any:
        """The largest of the last ``window_size`` values, without the steps that were left out."""
        return self._taken(window_size).max(window_size)

    def min(self, window_size: int | None = None) -> Any:
        """The least of the last ``window_size`` values, without the steps that were left out."""
        return self._taken(window_size).min(window_size)

    def statistics(self, method_name: str, *arg: Any, **kwargs: Any) -> Any:
        """A statistic by its name, as a log processor's ``custom_cfg`` asks for it."""
        if method_name in ('mean', 'max', 'min', 'current'):
            return getattr(self, method_name)(*arg, **kwargs)
        return super().statistics(method_name, *arg, **kwargs)

    def _taken(self, window_size: int | None) -> HistoryBuffer:
        """A plain buffer of the values that count within a window."""
        values, counts = self.data
        if isinstance(window_size, int):
            values, counts = values[-window_size:], counts[-window_size:]
        plain = HistoryBuffer()
        plain._log_history, plain._count_history = values, counts
        if not counts.all():
            # If every step was left out, the number that stock MMEngine shows is the honest one.
            counted = counts != 0 if counts.any() else np.ones(len(counts), bool)
            plain._log_history = values[counted]
            plain._count_history = np.maximum(counts[counted], 1)
        return plain

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Without the statistics methods: they belong to the class, and torch's safe loader refuses
        # them.
        values, counts = self.data
        state = {'max_length': self.max_length, '_log_history': values, '_count_history': counts}
        return HistoryBuffer, (), state


class ShareHistory(StepHistory):
    """The history of ``nonfinite``: a line of the log shows the mean since the line before."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._logged = self.total
        self._share: Any = None

    def current(self) -> Any:
        """The last value; for a line of the log the mean of the values since the last line."""
        history = self._log_history
        if self.source is None or not self.source.is_read_for_line:
            return super().current()
        news = min(self.total - self._logged, len(history))
        if news > 0:
            # A log processor may ask several times for one line.
            self._share, self._logged = history[-news:].mean(), self.total
        return super().current() if self._share is None else self._share


def _joined(history: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """History and values joined; values alone keep their dtype, so that integers stay integers."""
    return np.append(history, values) if len(history) else np.array(values)


# -- the records of the steps ---------------------------------------------------------------------
