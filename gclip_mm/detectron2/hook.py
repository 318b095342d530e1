"""Clipping as a hook of a Detectron2 trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase

from ..clipping.checks import ClipConfigError, check_number
from ..clipping.config.parse import parse_clip_grad
from ..clipping.step.engine import GradClipEngine
from .clip import attach
from .rule import read_rule


class GClipHook(HookBase):
    """Clips the optimizer of the trainer that it is registered with, from that moment on.

    It does what :func:`~gclip_mm.detectron2.clip.clip` does. Register it before
    ``resume_or_load``: the state of the rule is loaded with the optimizer's. Its place among the
    hooks is of no effect.

    Args:
        rule: see :func:`~gclip_mm.detectron2.clip.clip`.
        log_period: iterations from one entry in the event storage to the next.

    Raises:
        ClipConfigError: an invalid rule (when the hook is built); an optimizer that is clipped
            already (when it is registered).

    Example:
        >>> trainer.register_hooks([GClipHook(dict(type='AGC', clip_factor=0.01))])
    """

    def __init__(self, rule: str | Mapping[str, Any], log_period: int = 20) -> None:
        clip_grad = read_rule(rule)
        check_number('log_period', log_period, low=1, integer=True, where='GClipHook')
        if clip_grad is not None:
            parse_clip_grad(clip_grad)
        self._clip_grad = clip_grad
        self._log_period = log_period
        self._trainer: Any = None
        #: What clips; None before the hook is registered, and with an empty ``SOLVER.GCLIP``.
        self.engine: GradClipEngine | None = None

    @property
    def trainer(self) -> Any:
        """The trainer, a weak reference; ``register_hooks`` sets it."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self._trainer = trainer
        if self._clip_grad is not None:
            self.engine = attach(
                trainer.optimizer, self._clip_grad, trainer.model, self._log_period
            )

    def before_train(self) -> None:
        """Refuse a trainer that clips by itself."""
        check_trainer(self.trainer)

    def after_train(self) -> None:
        """Warn if the loop never called ``optimizer.step``."""
        if self.engine is not None:
            self.engine.warn_if_unused()


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer that clips in its loop, where the optimizer does not show it.

    Raises:
        ClipConfigError: the trainer of detrex, with its ``clip_grad`` enabled.
    """
    if getattr(trainer, 'clip_grad_params', None) is not None:
        raise ClipConfigError(
            f'{trainer.__class__.__name__} clips by itself, and the gradients would be clipped '
            'twice: set train.clip_grad.enabled=False'
        )
