"""What has to be known of a fused optimizer before its step is left to ``found_inf``."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class MomentumWatch:
    """Tells whether fused SGD is about to create its momentum buffers.

    It would leave the buffers uninitialised if ``found_inf`` skipped its very first step. The host
    has to decide about that step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._seen: tuple[Any, Any, int] | None = None

    def is_lacking(self, views: list[Any]) -> bool:
        """Whether a parameter lacks its buffer.

        Args:
            views: the same list object for as long as the same gradients are present.
        """
        optimizer = self._optimizer
        if not isinstance(optimizer, torch.optim.SGD):
            return False
        # Cached for a set of gradients: existing buffers stay unless the optimizer's state is
        # replaced or emptied.
        seen = self._seen
        if (
            seen is not None
            and seen[0] is views
            and seen[1] is optimizer.state
            and seen[2] == len(optimizer.state)
        ):
            return False
        lacking = any(
            group['momentum'] != 0
            and any(
                p.grad is not None and optimizer.state[p].get('momentum_buffer') is None
                for p in group['params']
            )
            for group in optimizer.param_groups
        )
        self._seen = None if lacking else (views, optimizer.state, len(optimizer.state))
        return lacking
