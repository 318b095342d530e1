"""Seeing the steps that a GradScaler withholds.

A GradScaler that finds an infinite gradient does not call ``optimizer.step``, so that no hook of
the optimizer runs. The one method of the scaler that makes this choice is wrapped when the first
optimizer is clipped. For all other optimizers it does what it did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from ....compat import GradScaler


def watch_scalers(seam_on: Callable[[Optimizer], Any]) -> None:
    """Wrap ``GradScaler._maybe_opt_step``; calling it twice changes nothing.

    Args:
        seam_on: returns the seam of an optimizer, or None.
    """
    stock = GradScaler._maybe_opt_step
    if hasattr(stock, 'seam_on'):
        return

    @functools.wraps(stock)
    def maybe_step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        seam = seam_on(optimizer)
        if seam is None:
            return stock(self, optimizer, *args, **kwargs)
        return seam.under_scaler(lambda: stock(self, optimizer, *args, **kwargs))

    maybe_step.seam_on = seam_on  # type: ignore[attr-defined]
    GradScaler._maybe_opt_step = maybe_step
