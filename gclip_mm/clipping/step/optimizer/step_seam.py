"""The seam: hooks around an optimizer's ``step``, and around the closure that it may be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from .nested_steps import is_nested

if TYPE_CHECKING:
    from ..engine import GradClipEngine


class StepSeam:
    """Has an engine clip in every step of its optimizer, from when it is made until :meth:`remove`.

    Args:
        engine: is told of each step: ``begin_step``, ``begin_evaluation`` before every call of a
            closure, ``run_step`` when the gradients are there, and ``restore`` when it is over or
            has failed.
    """

    def __init__(self, engine: GradClipEngine) -> None:
        self._engine = engine
        # Traced by torch.compile, an attribute set on the optimizer is not seen by its step.
        before, after = (torch.compiler.disable(f) for f in (self._before_step, self._after_step))
        before.engine = engine
        self._hooks = [
            engine.optimizer.register_step_pre_hook(before),
            engine.optimizer.register_step_post_hook(after),
        ]

    @staticmethod
    def engine_on(optimizer: Optimizer) -> GradClipEngine | None:
        """The engine that clips for an optimizer, or None."""
        hooks = getattr(optimizer, '_optimizer_step_pre_hooks', {}).values()
        return next((hook.engine for hook in hooks if hasattr(hook, 'engine')), None)

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        if is_nested(optimizer):
            return None
        self._engine.begin_step()
        # torch hands the arguments of step on as they came, the optimizer itself first.
        closure = kwargs.get('closure', args[1] if len(args) > 1 else None)
        if closure is None:
            self._guarded(self._engine.run_step)
            return None

        # The gradients are made within the step, by the closure: clip when it returns.
        def evaluate() -> Any:
            self._engine.begin_evaluation()
            with torch.enable_grad():
                loss = closure()
            self._engine.run_step()
            return loss

        # As for the hooks.
        clipped = torch.compiler.disable(lambda: self._guarded(evaluate))
        if 'closure' in kwargs:
            return args, {**kwargs, 'closure': clipped}
        return (args[0], clipped, *args[2:]), kwargs

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not is_nested(optimizer):
            self._engine.restore()

    def _guarded(self, act: Callable[[], Any]) -> Any:
        """Its result; where it fails, no hook is going to be told that the step is over."""
        try:
            return act()
        except BaseException:
            self._engine.restore()
            raise
