"""What a step changes on the optimizer and its parameters, and puts back when it is over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .fused import MomentumWatch

_ABSENT = object()


class OptimizerSide:
    """Hands the coefficient to a fused optimizer, and keeps an optimizer from stepping.

    A fused optimizer reads the attributes ``grad_scale`` (it divides the gradients by it) and
    ``found_inf`` (where it is 1, the kernel changes nothing). A GradScaler sets both; so does this
    class. Everything is put back by :meth:`restore`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._momentum = MomentumWatch(optimizer)
        self._saved: dict[str, Any] = {}
        self._set: dict[str, Any] = {}
        self._hidden: list[tuple[Tensor, Tensor]] = []

    # -- a fused optimizer -----------------------------------------------------------------------
    @property
    def is_fused(self) -> bool:
        """Whether the optimizer takes ``grad_scale`` and ``found_inf``."""
        return getattr(self._optimizer, '_step_supports_amp_scaling', False) and all(
            group.get('fused') for group in self._optimizer.param_groups
        )

    @property
    def grad_scale(self) -> Tensor | None:
        """0-d, what the optimizer is about to divide the gradients by."""
        return getattr(self._optimizer, 'grad_scale', None)

    @property
    def found_inf(self) -> Tensor | None:
        """Not 0 where a GradScaler has found an infinite gradient; one element."""
        return getattr(self._optimizer, 'found_inf', None)

    def divide_by(self, divisor: Tensor | None) -> None:
        """Have the kernel divide the gradients by a number (0-d float32); None: by nothing."""
        self._assign('grad_scale', divisor)

    def skip_where(self, flag: Tensor) -> None:
        """Have the kernel change nothing where the flag (0-d float32) is 1."""
        self._assign('found_inf', flag)

    def can_skip(self, views: list[Any]) -> bool:
        """Whether ``found_inf`` leaves this step out without a trace.

        Args:
            views: the same list object for as long as the same gradients are present.
        """
        return not self._momentum.is_lacking(views)

    def _assign(self, name: str, value: Tensor | None) -> None:
        self._saved.setdefault(name, getattr(self._optimizer, name, _ABSENT))
        self._set[name] = value
        setattr(self._optimizer, name, value)

    # -- any optimizer ---------------------------------------------------------------------------
    def hide(self, params: Iterable[Tensor]) -> None:
        """Take the gradients away: an optimizer passes over parameters without a gradient."""
        for param in params:
            if param.grad is not None:
                self._hidden.append((param, param.grad))
                param.grad = None

    def unhide(self) -> None:
        """Give the gradients back, unless there are new ones after a step that was interrupted."""
        if all(param.grad is None for param, _ in self._hidden):
            for param, grad in self._hidden:
                param.grad = grad
        self._hidden.clear()

    def restore(self) -> None:
        """Put everything back; does nothing if nothing was changed."""
        self.unhide()
        for name, value in self._saved.items():
            if getattr(self._optimizer, name, _ABSENT) is not self._set[name]:
                # After an interrupted step, a scaler has set the attribute for the next one.
                continue
            if value is not _ABSENT:
                setattr(self._optimizer, name, value)
            else:
                delattr(self._optimizer, name)
        self._saved.clear()
        self._set.clear()
