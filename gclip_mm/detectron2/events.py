"""What a step did, in Detectron2's event storage."""

from __future__ import annotations

import math

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from ..clipping.step.record import LOG_KEYS


class Numbers:
    """Puts the numbers of the steps into the event storage that is current in the step.

    They are put within the step. A hook of the trainer would come after the one that writes
    ``metrics.json``, which writes no number twice and none of an iteration that it has written.

    An entry holds the mean over the steps since the last entry; ``nonfinite`` is the share of steps
    with a non-finite gradient, which do not count in the other means. The records stay on the
    device in between, so that it is read once in ``period`` iterations.

    Args:
        period: iterations from one entry to the next.
    """

    def __init__(self, period: int) -> None:
        self._period = period
        self._records: list[Tensor] = []
        self._entries: int | None = None

    def add(self, record: Tensor) -> None:
        """Take the record (6,) of a step."""
        if not has_event_storage():
            return
        self._records.append(record)
        iteration = get_event_storage().iter
        if self._entries is None:
            self._entries = iteration // self._period
        # With gradient accumulation, not every iteration has a step.
        if (iteration + 1) // self._period > self._entries:
            self._entries = (iteration + 1) // self._period
            self._put()

    def _put(self) -> None:
        rows, self._records = torch.stack(self._records).tolist(), []
        storage = get_event_storage()
        is_nonfinite = LOG_KEYS.index('nonfinite')
        taken = [row for row in rows if not row[is_nonfinite]]
        for i, key in enumerate(LOG_KEYS):
            counted = [row[i] for row in (rows if i == is_nonfinite else taken)]
            finite = [value for value in counted if math.isfinite(value)]
            value = sum(finite) / len(finite) if finite else rows[-1][i]
            storage.put_scalar(f'gclip/{key}', value, smoothing_hint=False)
