"""Noticing that Accelerate clips the gradients that this package clips as well.

``accelerator.clip_grad_norm_`` and ``clip_grad_value_`` are methods that a training loop calls
between the backward pass and ``step``. Neither the optimizer nor its config shows such a call, so
that the methods are wrapped when an optimizer is clipped in a process that has imported Accelerate.
For the parameters of other optimizers they do what they did.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

_METHODS = ('clip_grad_norm_', 'clip_grad_value_')


def watch_accelerator(is_clipped: Callable[[Tensor], bool]) -> None:
    """Wrap the clipping of ``accelerate.Accelerator``; calling it twice changes nothing.

    Args:
        is_clipped: whether a parameter belongs to an optimizer that is clipped.
    """
    accelerator: Any = getattr(sys.modules.get('accelerate'), 'Accelerator', None)
    for name in _METHODS:
        stock = getattr(accelerator, name, None)
        if stock is not None and not hasattr(stock, 'is_clipped'):
            setattr(accelerator, name, _warning(name, stock, is_clipped))


def _warning(name: str, stock: Any, is_clipped: Callable[[Tensor], bool]) -> Any:
    @functools.wraps(stock)
    def clip(self: Any, parameters: Any, *args: Any, **kwargs: Any) -> Any:
        # A generator can be read once.
        parameters = parameters if isinstance(parameters, Tensor) else list(parameters)
        first = parameters if isinstance(parameters, Tensor) else next(iter(parameters), None)
        if first is not None and is_clipped(first):
            warnings.warn(
                f'accelerator.{name} clips gradients that gclip_mm clips as well, when their '
                f'optimizer steps: remove the call of accelerator.{name}, or detach with '
                'handle.remove()',
                stacklevel=2,
            )
        return stock(self, parameters, *args, **kwargs)

    clip.is_clipped = is_clipped  # type: ignore[attr-defined]
    return clip
