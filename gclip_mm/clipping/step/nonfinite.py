"""Non-finite steps: the error they may raise, and the count of skipped steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .parameters import RoutedView

#: Steps between two device reads of the skip flags.
_LOOK_EVERY = 50


class NonFiniteGradientError(FloatingPointError):
    """A NaN or inf gradient under ``nonfinite='raise'``, or too many skipped steps in a row."""


def offenders(views: list[RoutedView], most: int = 5) -> str:
    """The names of the first parameters whose gradient is not finite. Waits for the device."""
    bad = [
        info.name
        for _, view in views
        for info, grad in zip(view.infos, view.grads, strict=True)
        if not torch.isfinite(grad).all()
    ]
    more = f' and {len(bad) - most} more' if len(bad) > most else ''
    return (', '.join(bad[:most]) or 'a part of a parameter on another rank') + more


class SkipCounter:
    """Counts consecutive skipped steps, and ends a run that only skips.

    Where only the device knows whether a step was skipped, the flags stay on the device and are
    read together every 50 steps, so that no step waits. Such a run may end up to 50 steps late.

    Args:
        most: number of consecutive skipped steps that raises; None: no limit, and flags on the
            device are not counted.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._count = 0
        self._flags: list[Tensor] = []

    @property
    def count(self) -> int:
        """Consecutive skipped steps up to now. May wait for the device."""
        self._look()
        return self._count

    @count.setter
    def count(self, value: int) -> None:
        self._flags.clear()
        self._count = value

    def add(self, skipped: bool | Tensor) -> None:
        """Count a step.

        Args:
            skipped: whether it was skipped; a 0-d tensor, True or not 0 if so, where only the
                device knows.

        Raises:
            NonFiniteGradientError: the limit is reached.
        """
        if isinstance(skipped, Tensor):
            if self.most is not None:
                self._flags.append(skipped)
                if len(self._flags) >= _LOOK_EVERY:
                    self._look()
            return
        self._look()
        self._take(skipped)

    def _look(self) -> None:
        if self._flags:
            flags, self._flags = torch.stack(self._flags).tolist(), []
            for flag in flags:
                self._take(flag)

    def _take(self, skipped: bool) -> None:
        self._count = self._count + 1 if skipped else 0
        if self.most is not None and self._count >= self.most:
            raise NonFiniteGradientError(
                f'{self._count} steps in a row had a non-finite gradient '
                f'(max_consecutive_skips={self.most}): the run is dead. Resume from an earlier '
                'checkpoint with a lower learning rate or a tighter threshold. (A loss scaler may '
                'skip some 16 steps until it has found its scale: allow for more)'
            )
