"""Seeing the steps that a GradScaler withholds.

A GradScaler that finds an infinite gradient does not call ``optimizer.step``, so that no hook of
the optimizer runs. The one method of the scaler that makes this choice is wrapped when the first
optimizer is clipped. For all other optimizers it does what it did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def watch_scalers(seam_on: Callable[[Optimizer], Any]) -> None:
    """Wrap ``GradScaler._maybe_opt_step``; calling it twice changes nothing.

    Args:
        seam_on: returns the seam of an optimizer, or None.
    """
    # Before torch 2.3 the class for all devices was the one for CUDA.
    scaler: Any = getattr(torch.amp, 'GradScaler', None) or torch.cuda.amp.GradScaler
    stock = scaler._maybe_opt_step
    if hasattr(stock, 'seam_on'):
        return

    @functools.wraps(stock)
    def maybe_step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        seam = seam_on(optimizer)
        if seam is None:
            return stock(self, optimizer, *args, **kwargs)
        return seam.under_scaler(lambda: stock(self, optimizer, *args, **kwargs))

    maybe_step.seam_on = seam_on  # type: ignore[attr-defined]
    scaler._maybe_opt_step = maybe_step
