"""The records of the steps, in MMEngine's message hub."""

from __future__ import annotations

import weakref

from mmengine.logging import MessageHub
from torch import Tensor

from ...clipping.step.record import LOG_KEYS
from .deferred_scalars import DeferredScalars

_logs: weakref.WeakKeyDictionary[MessageHub, dict[str, RecordLog]] = weakref.WeakKeyDictionary()


class RecordLog(DeferredScalars):
    """The records of one optimizer, which stay on the device until somebody looks."""

    def __init__(self, hub: MessageHub, prefix: str) -> None:
        super().__init__(hub)
        self.keys = tuple(f'train/{prefix}{key}' for key in LOG_KEYS)

    def append(self, record: Tensor) -> None:
        """Add the record of a step, a tensor (6,) in the order of ``LOG_KEYS``."""
        super().append(self.keys, record)


def record_log(hub: MessageHub, prefix: str = '') -> RecordLog:
    """The log of a hub under a prefix; one for all who write there."""
    logs = _logs.setdefault(hub, {})
    if prefix not in logs:
        logs[prefix] = RecordLog(hub, prefix)
    return logs[prefix]
