"""What time it is for a schedule: MMEngine keeps iteration and epoch in the message hub."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.logging import MessageHub


def hub_clock(hub: MessageHub, fallback: Callable[[], int]) -> Callable[[], tuple[int, int]]:
    """A clock that reads ``(iteration, epoch)``, both from 0, where the runner writes them.

    Args:
        hub: the runner's message hub.
        fallback: iteration where no runner is at work.
    """

    def clock() -> tuple[int, int]:
        iteration = hub.get_info('iter')
        if iteration is None:
            iteration = fallback()
        return iteration, hub.get_info('epoch', 0)

    return clock
