"""What a step changes on an optimizer and its parameters, and puts back when it is over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_ABSENT = object()


class Footprint:
    """Attributes set on the optimizer, and gradients taken away for the length of one step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._saved: dict[str, Any] = {}
        self._set: dict[str, Any] = {}
        self._hidden: list[tuple[Tensor, Tensor]] = []

    def set(self, **attributes: Tensor | None) -> None:
        """Set attributes of the optimizer, such as ``grad_scale``; what was there comes back."""
        for name, value in attributes.items():
            self._saved.setdefault(name, getattr(self._optimizer, name, _ABSENT))
            self._set[name] = value
            setattr(self._optimizer, name, value)

    def hide(self, params: Iterable[Tensor]) -> None:
        """Take the gradients away: an optimizer passes over parameters that have none.

        That leaves a step out exactly, whatever the optimizer: no weight decay, no momentum, no
        count of steps.
        """
        for param in params:
            if param.grad is not None:
                self._hidden.append((param, param.grad))
                param.grad = None

    def unhide(self) -> None:
        """Give the gradients back, unless there are newer ones: a step may have been broken off."""
        if all(param.grad is None for param, _ in self._hidden):
            for param, grad in self._hidden:
                param.grad = grad
        self._hidden.clear()

    def restore(self) -> None:
        """Put everything back; harmless where there is nothing to put back."""
        self.unhide()
        for name, value in self._saved.items():
            if getattr(self._optimizer, name, _ABSENT) is not self._set[name]:
                # After a step that was broken off, a scaler has set it anew for the next.
                continue
            if value is not _ABSENT:
                setattr(self._optimizer, name, value)
            else:
                delattr(self._optimizer, name)
        self._saved.clear()
        self._set.clear()
