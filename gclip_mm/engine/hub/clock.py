"""What time it is for a schedule: MMEngine keeps iteration and epoch in the message hub."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from mmengine.logging import MessageHub


class HubClock:
    """Reads ``(iteration, epoch)``, both from 0, where the runner writes them.

    Args:
        hub: the runner's message hub.
        fallback: iteration where no runner is at work; None: 0.
    """

    def __init__(self, hub: MessageHub, fallback: Callable[[], int] | None = None) -> None:
        self._hub = hub
        self._fallback = fallback

    def __deepcopy__(self, memo: dict[int, Any]) -> HubClock:
        # There is one runner to look at, however many copies are made of a wrapper.
        return HubClock(self._hub, copy.deepcopy(self._fallback, memo))

    def __call__(self) -> tuple[int, int]:
        iteration = self._hub.get_info('iter')
        if iteration is None:
            iteration = 0 if self._fallback is None else self._fallback()
        return iteration, self._hub.get_info('epoch', 0)
